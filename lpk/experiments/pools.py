"""Pools made in several ways, at every density: what most of the paper's figures and tables compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lpk import page
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan
from lpk.experiments.subject import Subject
from lpk.pooling.methods import COEFFICIENTS
from lpk.presets import Preset
from lpk.reporting import plots

Options = Mapping[str, Any] | None  # of lpk.pool; None: the ticket itself

INTERPOLATION = {"method": "interpolation"}
AVERAGE = {"method": "average"}

NOTE = (
    "Test accuracy in percent, mean ± sample standard deviation over the seeds; the best of a column is bold. "
    "Validation samples pick, the test set only reports."
)


class Cell(NamedTuple):
    """The test accuracy of one variant at one density."""

    round: int
    density: float
    accuracy: Spread


Cells = Mapping[str, Sequence[Cell]]  # of each variant, by round


def plan(
    preset: Preset,
    seeds: Iterable[int],
    variants: Mapping[str, Options],
    show: Callable[[Sequence[Measured]], Findings] | None = None,
    *,
    targets: Iterable[int] | None = None,
) -> Plan:
    """The test accuracy of every variant for every target. Its parts are measured by `measure`."""
    targets = range(preset.imp.rounds + 1) if targets is None else targets
    parts = [
        Part(seed, {"target": target, "pool": options}, networks(preset, options))
        for seed in seeds
        for target in targets
        for options in variants.values()
    ]
    return Plan(parts, measure, show or (lambda measured: findings(cells(measured, variants))))


def networks(preset: Preset, options: Options) -> int:
    """How many networks one pool evaluates, at most, its test included."""
    if options is None:
        return 1
    candidates = min(options.get("candidates", preset.imp.rounds), preset.imp.rounds)
    tried = len(options.get("coefficients", COEFFICIENTS)) if options["method"] == "interpolation" else 1
    greedy = options["method"] in ("interpolation", "average")
    return candidates * tried + 2 if greedy else 3


def measure(subject: Subject, target: int, pool: Options) -> Found:
    ticket = subject.tickets[target]
    if pool is None:
        return {"density": ticket.density, "accuracy": subject.predict(ticket.flat).accuracy}
    pooled = subject.pool(target, **pool)
    return {
        "density": pooled.density,
        "accuracy": subject.predict(pooled.flat).accuracy,
        "validation_accuracy": pooled.accuracy,
        "baseline_validation_accuracy": pooled.baseline_accuracy,
        "accepted": sum(step.accepted for step in pooled.steps),
        "candidates": len(pooled.steps),
        "forward_samples": pooled.forward_samples,
        "seconds": round(pooled.seconds, 3),
    }


def cells(measured: Sequence[Measured], variants: Mapping[str, Options]) -> dict[str, list[Cell]]:
    """The accuracies of each variant, over the seeds."""
    found: dict[str, list[Cell]] = {}
    for label, options in variants.items():
        own = [m for m in measured if m.part.settings["pool"] == options]
        targets = sorted({m.part.settings["target"] for m in own})
        by_target = [[m.found for m in own if m.part.settings["target"] == target] for target in targets]
        found[label] = [
            Cell(target, parts[0]["density"], spread(part["accuracy"] for part in parts))
            for target, parts in zip(targets, by_target, strict=True)
        ]
    return found


def findings(
    found: Cells,
    tables: Sequence[Table] | None = None,
    note: str = NOTE,
    figures: Mapping[str, bytes] | None = None,
) -> Findings:
    """Accuracy against density; the first variant is what the others are compared with."""
    first, *others = found
    said = [f"{label} {mean(gains(found[label], found[first])).points}" for label in others]
    return Findings(
        summary=f"Points of test accuracy over {first}, on average over all densities: {', '.join(said)}.",
        records=records(found),
        tables=[table("", found)] if tables is None else tables,
        figures={"accuracy": accuracy_plot(found)} if figures is None else figures,
        note=note,
    )


def records(found: Cells) -> list[dict[str, Any]]:
    return [
        {"variant": label, "round": cell.round, "density": cell.density, **cell.accuracy.record()}
        for label, row in found.items()
        for cell in row
    ]


def accuracy_plot(found: Cells) -> bytes:
    """The first two variants with their standard deviations."""
    lines = []
    for i, (label, row) in enumerate(found.items()):
        y = [100 * cell.accuracy.mean for cell in row]
        deviations = [math.nan if cell.accuracy.std is None else 100 * cell.accuracy.std for cell in row]
        low, high = ([a + sign * b for a, b in zip(y, deviations, strict=True)] for sign in (-1, 1))
        band = plots.Band("± standard deviation" if i == 1 else "", low, high)
        lines.append(plots.Line(label, y, band if i < 2 and not math.isnan(deviations[0]) else None))
    return plots.density_plot([cell.density for cell in next(iter(found.values()))], lines)


def gain_plot(found: Cells) -> bytes:
    """Gains over the first variant, in points; those of the second with their standard deviation over the seeds."""
    first, *others = found
    lines = [plots.Line(first, [0.0] * len(found[first]))]
    for i, label in enumerate(others):
        own = gains(found[label], found[first])
        y = [100 * gain.mean for gain in own]
        band = None
        if i == 0 and all(gain.std is not None for gain in own):
            low, high = ([100 * (gain.mean + sign * (gain.std or 0)) for gain in own] for sign in (-1, 1))
            band = plots.Band("± standard deviation", low, high)
        lines.append(plots.Line(label, y, band))
    title = f"gain in test accuracy over {first}, in points"
    return plots.density_plot([cell.density for cell in found[first]], lines, title=title, unit="")


def table(title: str, found: Cells, rounds: slice = slice(None)) -> Table:
    """A line for each variant, a column for each density."""
    columns = [cell.density for cell in next(iter(found.values()))[rounds]]
    rows = [[cell.accuracy for cell in row[rounds]] for row in found.values()]
    best = []
    for j in range(len(columns)):
        means = [round(row[j].mean, 4) for row in rows]  # as printed
        best += [(i, j + 1) for i, mean in enumerate(means) if mean == max(means)]
    heads = ["weights remaining", *(f"{page.percent(density)}%" for density in columns)]
    lines = [[label, *map(str, row)] for label, row in zip(found, rows, strict=True)]
    return Table(title, heads, lines, best)


def gains(row: Sequence[Cell], baseline: Sequence[Cell]) -> list[Spread]:
    """Of one variant over another, at each density, over the seeds."""
    return [
        spread(a - b for a, b in zip(cell.accuracy.values, base.accuracy.values, strict=True))
        for cell, base in zip(row, baseline, strict=True)
    ]


def mean(spreads: Sequence[Spread]) -> Spread:
    """Over densities, for each seed."""
    return spread(map(statistics.fmean, zip(*(each.values for each in spreads), strict=True)))


GAIN_HEADS = ("gain", "worst density", "better", "worse")


def gain_columns(row: Sequence[Cell], baseline: Sequence[Cell]) -> list[str]:
    """Under GAIN_HEADS: the mean over all densities, the worst of them, and how many values of all densities and seeds
    are gains, and how many losses."""
    own = gains(row, baseline)
    worst = min(range(len(own)), key=lambda i: own[i].mean)
    values = [value for gain in own for value in gain.values]
    counts = [str(sum(sign * value > 0 for value in values)) for sign in (1, -1)]
    return [mean(own).points, f"{own[worst].points} at {page.percent(row[worst].density)}%", *counts]
