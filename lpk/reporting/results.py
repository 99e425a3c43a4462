"""Test scores of tickets and of the networks pooled from them, as one JSON object; `lpk.report` writes its page."""

from __future__ import annotations

import datetime
import io
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lpk import page
from lpk.pooling.accuracy import PERCENT, Evaluation, Gain, Metric, evaluate, paired_gain
from lpk.pooling.pool import Given, read_tickets
from lpk.pooling.samples import Samples, first_inputs
from lpk.reporting import costs, plots
from lpk.reporting import report as run_report
from lpk.reporting.latency import BATCH
from lpk.schema import flag, null, number, string, table, whole
from lpk.tickets import files
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from lpk.tickets.versions import versions

RESULTS = "results.json"
REPORT = "report.html"
PLOT = "accuracy.svg"

GAIN = {"gain": number, "low": (number, null), "high": (number, null)}
POOL = {
    "accuracy": number,
    "gain": GAIN,
    "validation_accuracy": number,
    "baseline_validation_accuracy": number,
    "validation_unit?": string,
    "validation_samples?": (whole, null),
    "seconds": number,
    "forward_samples": whole,
    "steps": [{"candidate": whole, "coefficient": (number, null), "accuracy": (number, null), "accepted": flag}],
    "costs?": costs.POOL,
}
CONTENT = {
    "format": whole,
    "title": string,
    "manifest": table,
    "metric?": {"name": string, "unit": string, "samples": (whole, null)},
    "layers?": {"pruned": [string], "spared": [string]},
    "methods": [string],
    "rows": [
        {
            "round": whole,
            "density": number,
            "keep": whole,
            "ticket": number,
            "pools": {string: POOL},
            "costs?": costs.TICKET,
        }
    ],
    "costs?": costs.DENSE,
    "mean": {"ticket": number, "pools": {string: {"accuracy": number, "gain": GAIN}}},
    "seconds": {string: number},
}


class Results(dict[str, Any]):
    """The content of a results.json (docs/formats.md); prints as its table and a sentence, in notebooks as HTML."""

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises FileNotFoundError, or lpk.FileDamaged."""
        results = cls(files.read_json(path, CONTENT))
        pools = {method for row in [*results["rows"], results["mean"]] for method in row["pools"]}
        methods = results["methods"]
        if not results["rows"] or pools - set(methods) or len(set(methods)) < len(methods):
            raise files.FileDamaged(f"{path} is damaged: its rows, methods and pools do not fit one another")
        if not costs.fit(results):
            raise files.FileDamaged(f"{path} is damaged: the costs in it do not fit one another")
        return results

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=100, markup=False, emoji=False, highlight=False)
        console.print(*run_report.shown(self), sep="\n")
        assert isinstance(console.file, io.StringIO)
        return "\n".join([console.file.getvalue().rstrip(), *run_report.said(self)])

    def _repr_html_(self) -> str:
        return page.element("div", *run_report.overview(self))


def report(
    path: str | Path,
    tickets: Given,
    pools: Pooled | Sequence[Pooled] | Mapping[str, Sequence[Pooled]] = (),
    *,
    model: nn.Module,
    test: Samples | None = None,
    metric: Metric | None = None,
    unit: str | None = None,
    title: str | None = None,
    inputs: Tensor | None = None,
    latency: bool = True,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Results:
    """Evaluates tickets and what was pooled from them on test samples, and writes a report.

    Args:
        path: a directory, in which report.html, accuracy.svg and results.json are written, or replaced where they are
            of an earlier report; or the name of an .html file, which is then all that is written.
        tickets: as lpk.pool takes them.
        pools: a pooled network, a list of them, or a mapping from a method's name to a list. In a list they are told
            apart by what their `settings` say: method and criterion, and "after" where they were pruned after.
        model, test, metric, unit, batch_size, device, progress: as lpk.evaluate takes them.
        title: of the page; None: the model's class.
        inputs: a batch of the model's inputs, with which its multiply-adds are counted and its latency is measured;
            None: of the test samples, where they are given.
        latency: whether to measure it, on this machine's CPU; about a second for each ticket of a small network.

    Returns:
        The content of results.json: a dict that prints as the report's table and sentence.

    Raises:
        ValueError: a pool of no ticket among these, two of one round and method, files in the directory that are of no
            report; and as lpk.evaluate does.
    """
    plots.need()
    place = files.absolute(path)
    alone = place.suffix.lower() in (".html", ".htm")
    if not alone:
        check_free(place)
    began = datetime.datetime.now(datetime.UTC)
    results = evaluated(
        read_tickets(tickets),
        _by_method(pools),
        model=model,
        test=test,
        metric=metric,
        unit=unit,
        title=title or type(model).__name__,
        manifest={"created": began.isoformat(timespec="seconds"), "versions": versions()},
        inputs=inputs,
        latency=latency,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    if alone:
        files.make_directory(place.parent)
        run_report.write(results, place)
    else:
        files.make_directory(place)
        files.write_json(place / RESULTS, results)
        write(results, place)
    return results


def write(results: Mapping[str, Any], directory: Path) -> None:
    """Writes the page and the plot of a results.json into its directory, which must be there."""
    run_report.write(results, directory / REPORT)
    files.write_bytes(directory / PLOT, run_report.accuracy_plot(results))


def evaluated(
    tickets: Tickets,
    pools: Mapping[str, Sequence[Pooled]],
    *,
    model: nn.Module,
    test: Samples | None,
    title: str,
    manifest: Mapping[str, Any],
    metric: Metric | None = None,
    unit: str | None = None,
    inputs: Tensor | None = None,
    latency: bool = True,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Results:
    """The results of tickets and, for each method, of the networks pooled from them, in the mapping's order.

    title: of the page. manifest: how to repeat it. inputs, latency: as `report` takes them. The others: as lpk.evaluate
    takes them.
    """
    began = time.perf_counter()
    made = [(method, pooled) for method, some in pools.items() for pooled in some]
    _check_pools(tickets, made)
    found = evaluate(
        model,
        [*tickets, *(pooled for _, pooled in made)],
        test,
        metric=metric,
        unit=unit,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    baseline = dict(enumerate(found[: len(tickets)]))
    ours: dict[str, dict[int, Evaluation]] = {method: {} for method in pools}
    for (method, pooled), evaluation in zip(made, found[len(tickets) :], strict=True):
        ours[method][pooled.round] = evaluation
    rows = [
        {
            "round": ticket.round,
            "density": ticket.density,
            "keep": ticket.keep,
            "ticket": baseline[ticket.round].score,
            "pools": {
                method: _pool(pooled, ours[method][ticket.round], baseline[ticket.round])
                for method, pooled in made
                if pooled.round == ticket.round
            },
        }
        for ticket in tickets
    ]
    first = found[0]
    samples = None if first.samples is None else len(first.samples)
    results = Results(
        format=files.FORMAT,
        title=title,
        manifest=dict(manifest),
        metric={"name": first.metric, "unit": first.unit, "samples": samples},
        layers={"pruned": list(tickets.layout.prunable), "spared": list(tickets.layout.spared)},
        methods=list(pools),
        rows=rows,
        mean={
            "ticket": _mean(baseline.values()),
            "pools": {method: _mean_pool(own, baseline) for method, own in ours.items() if own},
        },
        seconds={
            "pool": round(sum(pooled.seconds for _, pooled in made), 1),
            "evaluate": round(time.perf_counter() - began, 1),
        },
    )
    began = time.perf_counter()
    if inputs is None and test is not None:
        inputs = first_inputs(test, BATCH)
    costs.add(results, model, tickets, pools, inputs, latency=latency, progress=progress)
    results["seconds"]["costs"] = round(time.perf_counter() - began, 1)
    return results


def _by_method(pools: Pooled | Sequence[Pooled] | Mapping[str, Sequence[Pooled]]) -> dict[str, list[Pooled]]:
    if isinstance(pools, Mapping):
        return {method: list(some) for method, some in pools.items()}
    found: dict[str, list[Pooled]] = {}
    for pooled in [pools] if isinstance(pools, Pooled) else pools:
        found.setdefault(method_of(pooled), []).append(pooled)
    return found


def method_of(pooled: Pooled) -> str:
    """What a pooled network is told from others of its round by: method, criterion, and when it was pruned."""
    settings = pooled.settings
    parts = [settings.get("method", "pool")]
    parts += ["loss"] if settings.get("criterion") == "loss" else []
    parts += ["after"] if settings.get("prune") == "after" else []
    return "-".join(map(str, parts))


def _check_pools(tickets: Tickets, made: Sequence[tuple[str, Pooled]]) -> None:
    seen = set()
    for method, pooled in made:
        if (method, pooled.round) in seen:
            raise ValueError(
                f"pools holds two networks of round {pooled.round} by {method}; a mapping gives each a name of its own"
            )
        seen.add((method, pooled.round))
        if pooled.round >= len(tickets):
            raise ValueError(
                f"pools holds one of round {pooled.round}; the tickets are of rounds 0 to {len(tickets) - 1}"
            )
        if pooled.layout != tickets.layout:
            raise ValueError(f"the network of round {pooled.round} by {method} is of another network than the tickets")
        if pooled.keep != tickets[pooled.round].keep:
            raise ValueError(
                f"the network of round {pooled.round} by {method} keeps {pooled.keep} weights, that round's ticket "
                f"{tickets[pooled.round].keep}: it was pooled from other tickets"
            )


def check_free(directory: Path) -> None:
    """Raises ValueError where files of a report stand in the directory that lpk did not write."""
    ours = False
    with suppress(FileNotFoundError, ValueError):
        ours = bool(Results.read(directory / RESULTS))
    for name in (RESULTS, REPORT, PLOT):
        if not ours and os.path.lexists(directory / name):
            raise ValueError(f"{directory} holds {name}, and no report of lpk; use another directory")


def _gain(gain: Gain) -> dict[str, float | None]:
    return {
        name: None if math.isnan(x) else x for name, x in (("gain", gain.gain), ("low", gain.low), ("high", gain.high))
    }


def _pool(pooled: Pooled, evaluation: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    picked_by_function = "criterion" in pooled.settings and pooled.settings["criterion"] is None
    return {
        "accuracy": evaluation.score,
        "gain": _gain(evaluation.gain(baseline)),
        "validation_accuracy": pooled.accuracy,
        "baseline_validation_accuracy": pooled.baseline_accuracy,
        "validation_unit": "" if picked_by_function else PERCENT,
        "validation_samples": pooled.settings.get("validation_samples"),
        "seconds": round(pooled.seconds, 3),
        "forward_samples": pooled.forward_samples,
        "steps": [step._asdict() for step in pooled.steps],
    }


def _mean_pool(found: Mapping[int, Evaluation], baseline: Mapping[int, Evaluation]) -> dict[str, Any]:
    """Over the targets that this method has; the interval is over the test samples, which all targets share."""
    ours, theirs = list(found.values()), [baseline[round_] for round_ in found]
    first = ours[0]
    if first.samples is None:
        gain = Gain(_mean(ours) - _mean(theirs), math.nan, math.nan, first.unit)
    else:
        gain = paired_gain(_stacked(ours), _stacked(theirs), unit=first.unit)
    return {"accuracy": _mean(ours), "gain": _gain(gain)}


def _mean(found: Collection[Evaluation]) -> float:
    return sum(evaluation.score for evaluation in found) / len(found)


def _stacked(found: Sequence[Evaluation]) -> Tensor:
    return torch.stack([evaluation.samples for evaluation in found if evaluation.samples is not None])
