"""Tickets, pools and averaging baselines of one run directory: what `lpk demo`, `lpk pool` and `lpk eval` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lpk.own import Subject
from lpk.pooling import methods as possible
from lpk.pooling.methods import CRITERIA
from lpk.pooling.pool import pool
from lpk.reporting.results import RESULTS, Results, evaluated
from lpk.run import Run
from lpk.tickets import files
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets

METHODS = ("interpolation", "average", "swa", "ema")


def compare(run: Run, *, methods: Sequence[str] = METHODS, latency: bool = True, progress: bool = True) -> Results:
    """Trains the tickets, pools every one by every method, and reports test accuracies: all of the run's parts."""
    began = time.perf_counter()
    tickets = run.imp(progress=progress)
    trained = time.perf_counter() - began
    for method in methods:
        make_pools(run, tickets, method=method, progress=progress)
    results = evaluate(run, latency=latency, progress=progress)
    results["seconds"] = {"imp": round(trained, 1), **results["seconds"]}
    files.write_json(run.path / RESULTS, results)
    return results


def make_pools(
    run: Subject,
    tickets: Tickets,
    *,
    method: str,
    target: int | None = None,
    criterion: str = "accuracy",
    scope: str | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Pooled]:
    """Pools one target, or all of them, and stores each network when it is there, by another criterion under a name of
    its own.

    A function in the place of the validation samples scores candidates, see lpk.pool's `evaluate`. A `scope`
    of None is that of the tickets' pruning.
    """
    validation: Any = run.samples("validation")
    scores = callable(validation)
    if scores and criterion != "accuracy":
        raise ValueError(f"criterion is {criterion!r}, but the validation of --data is a function, which picks itself")
    name = method if criterion == "accuracy" else f"{method}-{criterion}"
    if method in possible.METHODS and criterion in CRITERIA:  # pool() refuses others
        run.make_pooled_directory(name)
    made = pool(
        tickets,
        target,
        model=run.model(),
        validation=None if scores else validation,
        evaluate=validation if scores else None,
        calibration=run.samples("calibration"),
        method=method,
        criterion=criterion,
        scope=scope or run.scope,
        batch_size=run.batch_size,
        on_pool=lambda pooled: pooled.write(run.pooled_path(name, pooled.round)),
        progress=progress,
        **options,
    )
    return made if isinstance(made, list) else [made]


def evaluate(run: Subject, *, latency: bool = True, progress: bool = True) -> Results:
    """Test scores and costs of the tickets and of every pooled network that is there; written to results.json.

    A function in the place of the test samples is the metric, see lpk.evaluate. latency: whether it is measured.
    """
    pools = run.pooled()
    test: Any = run.samples("test")
    metric = test if callable(test) else None
    results = evaluated(
        run.tickets(),
        {method: pools[method] for method in [*(m for m in METHODS if m in pools), *sorted({*pools} - {*METHODS})]},
        model=run.model(),
        test=None if metric else test,
        metric=metric,
        title=run.title,
        manifest=run.manifest,
        latency=latency,
        batch_size=run.batch_size,
        progress=progress,
    )
    files.write_json(run.path / RESULTS, results)
    return results
