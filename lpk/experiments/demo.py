"""Tickets, pools and averaging baselines of one run directory: what `lpk demo`, `lpk pool` and `lpk eval` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpk.pooling import methods as possible
from lpk.pooling.accuracy import Gain, correct_predictions, paired_gain
from lpk.pooling.methods import CRITERIA
from lpk.pooling.pool import pool
from lpk.progress import Progress
from lpk.run import RESULTS, Run
from lpk.schema import flag, null, number, string, whole
from lpk.tickets import files
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets

METHODS = ("interpolation", "average", "swa", "ema")

GAIN = {"gain": number, "low": number, "high": number}
POOL = {
    "accuracy": number,
    "gain": GAIN,
    "validation_accuracy": number,
    "baseline_validation_accuracy": number,
    "seconds": number,
    "forward_samples": whole,
    "steps": [{"candidate": whole, "coefficient": (number, null), "accuracy": (number, null), "accepted": flag}],
}
CONTENT = {
    "format": whole,
    "title": string,
    "manifest": {"seed": whole},
    "layers?": {"pruned": [string], "spared": [string]},
    "methods": [string],
    "rows": [{"round": whole, "density": number, "keep": whole, "ticket": number, "pools": {string: POOL}}],
    "mean": {"ticket": number, "pools": {string: {"accuracy": number, "gain": GAIN}}},
    "seconds": {string: number},
}


def read_results(path: Path) -> dict[str, Any]:
    """A run's results.json. Raises FileNotFoundError, or lpk.FileDamaged."""
    results = files.read_json(path, CONTENT)
    pools = {method for row in [*results["rows"], results["mean"]] for method in row["pools"]}
    if not results["rows"] or pools - set(results["methods"]) or len(set(results["methods"])) < len(results["methods"]):
        raise files.FileDamaged(f"{path} is damaged: its rows, methods and pools do not fit one another")
    return results


def compare(run: Run, *, methods: Sequence[str] = METHODS, progress: bool = True) -> dict[str, Any]:
    """Trains the tickets, pools every one by every method, and reports test accuracies: all of the run's parts."""
    began = time.perf_counter()
    tickets = run.imp(progress=progress)
    trained = time.perf_counter() - began
    for method in methods:
        make_pools(run, tickets, method=method, progress=progress)
    results = evaluate(run, progress=progress)
    results["seconds"] = {"imp": round(trained, 1), **results["seconds"]}
    files.write_json(run.path / RESULTS, results)
    return results


def make_pools(
    run: Run,
    tickets: Tickets,
    *,
    method: str,
    target: int | None = None,
    criterion: str = "accuracy",
    progress: bool = True,
    **options: Any,
) -> list[Pooled]:
    """Pools one target, or all of them, and stores the networks, by another criterion under a name of their own."""
    name = method if criterion == "accuracy" else f"{method}-{criterion}"
    if method in possible.METHODS and criterion in CRITERIA:  # pool() refuses others
        run.make_pooled_directory(name)
    batch_size = run.preset.pool.batch_size
    made = pool(
        tickets,
        target,
        model=run.model(),
        validation=run.data.validation.loader(batch_size),
        calibration=run.calibration().loader(batch_size),
        method=method,
        criterion=criterion,
        batch_size=batch_size,
        progress=progress,
        **options,
    )
    made = made if isinstance(made, list) else [made]
    for pooled in made:
        pooled.write(run.pooled_path(name, pooled.round))
    return made


def evaluate(run: Run, *, progress: bool = True) -> dict[str, Any]:
    """Test accuracies of the run's tickets and of every pooled network that is there; written to results.json."""
    began = time.perf_counter()
    tickets, pools = run.tickets(), run.pooled()
    model = run.model()
    batch_size = run.preset.pool.batch_size
    test = run.data.test.loader(batch_size)
    networks = len(tickets) + sum(len(pooled) for pooled in pools.values())

    with Progress("test", networks, show=progress) as bar:

        def correct(state: dict[str, Tensor], note: str) -> Tensor:
            bar.note(note)
            model.load_state_dict(state)
            result = correct_predictions(model, test, batch_size=batch_size)
            bar.advance()
            return result

        baseline = {t.round: correct(t.state_dict, f"ticket {t.round}") for t in tickets}
        found = {
            method: {p.round: correct(p.state_dict, f"{method} {p.round}") for p in pooled}
            for method, pooled in pools.items()
        }
    methods = [m for m in METHODS if m in pools] + sorted(set(pools) - set(METHODS))
    rows = [
        {
            "round": ticket.round,
            "density": ticket.density,
            "keep": ticket.keep,
            "ticket": _accuracy(baseline[ticket.round]),
            "pools": {
                method: _pool_row(pooled, found[method][ticket.round], baseline[ticket.round])
                for method in methods
                for pooled in pools[method]
                if pooled.round == ticket.round
            },
        }
        for ticket in tickets
    ]
    results = {
        "format": files.FORMAT,
        "title": f"{run.data.name}, {run.preset.model.name}",
        "manifest": run.manifest,
        "layers": {"pruned": tickets.layout.prunable, "spared": tickets.layout.spared},
        "methods": methods,
        "rows": rows,
        "mean": {
            "ticket": _accuracy(torch.stack(list(baseline.values()))),
            "pools": {method: _mean(found[method], baseline) for method in methods},
        },
    }
    results["seconds"] = {
        "pool": round(sum(pooled.seconds for made in pools.values() for pooled in made), 1),
        "evaluate": round(time.perf_counter() - began, 1),
    }
    files.write_json(run.path / RESULTS, results)
    return results


def _accuracy(correct: Tensor) -> float:
    return float(correct.double().mean())


def _gain(gain: Gain) -> dict[str, float]:
    return {"gain": gain.gain, "low": gain.low, "high": gain.high}


def _pool_row(pooled: Pooled, correct: Tensor, baseline: Tensor) -> dict[str, Any]:
    return {
        "accuracy": _accuracy(correct),
        "gain": _gain(paired_gain(correct, baseline)),
        "validation_accuracy": pooled.accuracy,
        "baseline_validation_accuracy": pooled.baseline_accuracy,
        "seconds": round(pooled.seconds, 3),
        "forward_samples": pooled.forward_samples,
        "steps": [step._asdict() for step in pooled.steps],
    }


def _mean(found: dict[int, Tensor], baseline: dict[int, Tensor]) -> dict[str, Any]:
    """Over the targets that this method has; the interval is over the test samples, which all targets share."""
    pooled = torch.stack(list(found.values()))
    tickets = torch.stack([baseline[round_] for round_ in found])
    return {"accuracy": _accuracy(pooled), "gain": _gain(paired_gain(pooled, tickets))}
