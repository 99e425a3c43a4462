"""Test loss and error on the line between adjacent tickets, with and without rewinding (Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lpk import page
from lpk.experiments.averages import WORDS
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan, rewinds
from lpk.experiments.subject import Prediction, Subject
from lpk.presets import Preset
from lpk.reporting import plots

POINTS = 11


class Point(NamedTuple):
    """At `place` on the way from one ticket to the next: round 2.3 is 0.7·ticket 2 + 0.3·ticket 3."""

    place: float
    loss: Spread
    error: Spread


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    parts = [
        Part(seed, {"denser": denser, "points": POINTS}, networks=POINTS, rewind=rewind)
        for seed in seeds
        for rewind in rewinds(preset)
        for denser in range(preset.imp.rounds)
    ]
    return Plan(parts, _measure, _show)


def _measure(subject: Subject, denser: int, points: int) -> Found:
    """On the line from one ticket to the next. Its ends are the tickets as they are; nothing between is pruned."""
    first, last = subject.tickets[denser : denser + 2]

    def at(k: int) -> Prediction:
        if k in (0, points - 1):
            return subject.predict((last if k else first).flat)
        return subject.interpolate(first, last, 1 - k / (points - 1))

    made = [at(k) for k in range(points)]
    return {
        "densities": [first.density, last.density],
        "loss": [prediction.loss for prediction in made],
        "error": [1 - prediction.accuracy for prediction in made],
    }


def _show(measured: Sequence[Measured]) -> Findings:
    paths: dict[bool, list[list[Point]]] = {}
    densities: dict[int, float] = {}
    for rewind in dict.fromkeys(m.part.rewind for m in measured):
        own = [m for m in measured if m.part.rewind == rewind]
        for denser in sorted({m.part.settings["denser"] for m in own}):
            found = [m.found for m in own if m.part.settings["denser"] == denser]
            densities |= {denser + i: density for i, density in enumerate(found[0]["densities"])}
            paths.setdefault(rewind, []).append(_path(denser, found))
    barriers = {rewind: [_barrier(path) for path in own] for rewind, own in paths.items()}
    heads = ["from", "to", *(f"error barrier {WORDS[rewind]}" for rewind in paths)]
    lines = [
        [
            f"{page.percent(densities[i])}%",
            f"{page.percent(densities[i + 1])}%",
            *(own[i].points for own in barriers.values()),
        ]
        for i in range(len(densities) - 1)
    ]
    means = [f"{WORDS[rewind]} {page.points(sum(b.mean for b in own) / len(own))}" for rewind, own in barriers.items()]
    return Findings(
        summary=f"The error barrier between adjacent tickets is on average, in points: {', '.join(means)}.",
        records=[
            {"rewind": rewind, "round": point.place, **point.loss.record("loss"), **point.error.record("error")}
            for rewind, own in paths.items()
            for path in own
            for point in path
        ],
        tables=[Table("", heads, lines)],
        figures={"interpolation": _plot(paths, [f"{page.percent(d)}%" for d in densities.values()])},
        note="The ends are the tickets as they are; between them nothing is pruned, and BatchNorm's statistics are "
        "estimated again. Barrier: the largest error between two tickets, less their own mean error, in points of test "
        "error (below 0: every network between them is better than that).",
    )


def _path(denser: int, found: Sequence[Found]) -> list[Point]:
    """From a ticket to the next, over the seeds."""
    losses, errors = ([spread(own) for own in zip(*(f[key] for f in found), strict=True)] for key in ("loss", "error"))
    places = [denser + k / (len(losses) - 1) for k in range(len(losses))]
    return [Point(*point) for point in zip(places, losses, errors, strict=True)]


def _barrier(path: Sequence[Point]) -> Spread:
    """The largest error inside the path less the mean of its ends, for each seed."""
    errors = list(zip(*(point.error.values for point in path), strict=True))
    return spread(max(own[1:-1]) - (own[0] + own[-1]) / 2 for own in errors)


def _plot(paths: Mapping[bool, Sequence[Sequence[Point]]], labels: Sequence[str]) -> bytes:
    with plots.drawing(7, 4.4) as drawn:
        panels = drawn.figure.subplots(2, 1, sharex=True)
        for axes, title, unit in zip(panels, ("test loss", "test error"), ("", "%"), strict=True):
            for i, (rewind, own) in enumerate(paths.items()):
                points = [point for path in own for point in path]
                x = [point.place for point in points]
                y = [point.loss.mean if unit == "" else 100 * point.error.mean for point in points]
                ends = [k for k, place in enumerate(x) if place == int(place)]
                color = plots.LIGHT[f"series{i}"]
                axes.plot(x, y, "-", color=color, lw=1.6, label=WORDS[rewind] if unit == "" else None)
                axes.plot([x[k] for k in ends], [y[k] for k in ends], "o", color=color, ms=4)
            axes.set_title(title, loc="left", fontsize=9, color=plots.LIGHT["soft"])
            plots.value_scale(axes, unit)
        panels[-1].set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 8 else 0)
        panels[-1].set_xlabel("density of the tickets (dots), and between them", color=plots.LIGHT["soft"])
        drawn.figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=plots.LIGHT["ink"])
    return drawn.image
