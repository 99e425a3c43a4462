"""Plain averages of two tickets, with and without rewinding (Figure 1; VGG-16 in the appendix' Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lpk import page
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan, rewinds
from lpk.experiments.subject import Subject
from lpk.presets import Preset
from lpk.reporting import plots

GAIN = "points of test accuracy over the better of the two"
WORDS = {True: "with rewinding", False: "without rewinding"}


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    tickets = range(preset.imp.rounds + 1)
    parts = [
        Part(seed, {"sparser": sparser}, networks=sparser + 1, rewind=rewind)
        for seed in seeds
        for rewind in rewinds(preset)
        for sparser in tickets
    ]
    return Plan(parts, _measure, _show)


def _measure(subject: Subject, sparser: int) -> Found:
    """The averages of one ticket with each denser one, pruned to its own density."""
    ticket = subject.tickets[sparser]
    return {
        "density": ticket.density,
        "ticket": subject.predict(ticket.flat).accuracy,
        "averages": [
            subject.interpolate(ticket, subject.tickets[denser], 0.5, ticket.keep).accuracy for denser in range(sparser)
        ],
    }


def _show(measured: Sequence[Measured]) -> Findings:
    found = {
        rewind: _by_ticket([m for m in measured if m.part.rewind == rewind])
        for rewind in dict.fromkeys(m.part.rewind for m in measured)
    }
    densities = [parts[0]["density"] for parts in next(iter(found.values()))]
    heads = ["denser, sparser", *(f"{page.percent(density)}%" for density in densities)]
    records, tables = [], []
    gains: dict[bool, dict[tuple[int, int], Spread]] = {}
    for rewind, by_ticket in found.items():
        lines = [[head, *[""] * len(densities)] for head in heads[1:]]
        gains[rewind] = {}
        for j, parts in enumerate(by_ticket):
            lines[j][j + 1] = str(spread(part["ticket"] for part in parts))
            for i in range(j):
                average = spread(part["averages"][i] for part in parts)
                better = [max(a["ticket"], b["ticket"]) for a, b in zip(by_ticket[i], parts, strict=True)]
                gain = gains[rewind][i, j] = spread(a - b for a, b in zip(average.values, better, strict=True))
                lines[i][j + 1] = str(average)
                place = {"rewind": rewind, "denser": i, "sparser": j}
                place |= {"denser_density": densities[i], "sparser_density": densities[j]}
                records.append({**place, **average.record(), **gain.record("gain")})
        tables.append(
            Table(f"Test accuracy of the averages {WORDS[rewind]}; on the diagonal: the tickets", heads, lines)
        )
    return Findings(
        summary=". ".join(_sentence(WORDS[rewind], own) for rewind, own in gains.items()) + ".",
        records=records,
        tables=tables,
        figures={"averages": _plot(gains, plots.short(densities))},
        note="An average is pruned to the sparser ticket's density, and BatchNorm's statistics are estimated again. "
        "The figure shows points of test accuracy over the better of the two tickets; the tables show accuracies in "
        "percent, mean ± sample standard deviation over the seeds.",
    )


def _by_ticket(measured: Sequence[Measured]) -> list[list[Found]]:
    """For each ticket what was found of it, one for each seed."""
    count = 1 + max(m.part.settings["sparser"] for m in measured)
    return [[m.found for m in measured if m.part.settings["sparser"] == ticket] for ticket in range(count)]


def _sentence(words: str, gains: Mapping[tuple[int, int], Spread]) -> str:
    adjacent = [gain.mean for (i, j), gain in gains.items() if j == i + 1]
    better = sum(gain > 0 for gain in adjacent)
    mean = page.points(sum(adjacent) / len(adjacent))
    return (
        f"{words.capitalize()}, {better} of {len(adjacent)} averages of adjacent tickets are more accurate than the "
        f"better of the two (on average {mean} points)"
    )


def _plot(gains: Mapping[bool, Mapping[tuple[int, int], Spread]], labels: Sequence[str]) -> bytes:
    with plots.drawing(4.2 * len(gains), 4) as drawn:
        panels = drawn.figure.subplots(1, len(gains), squeeze=False)[0]
        for axes, (rewind, own) in zip(panels, gains.items(), strict=True):
            values = [[math.nan] * len(labels) for _ in labels]
            for (i, j), gain in own.items():
                values[i][j] = values[j][i] = 100 * gain.mean
            plots.heat_map(axes, values, labels, axis="density", quantity=GAIN, unit="", diverging=True)
            axes.set_title(WORDS[rewind], loc="left", fontsize=9, color=plots.LIGHT["soft"])
    return drawn.image
