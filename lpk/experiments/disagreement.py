"""On how many test samples two tickets predict different classes (Figure 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lpk import page
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan
from lpk.experiments.subject import Subject
from lpk.presets import Preset
from lpk.reporting import plots


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    return Plan([Part(seed, {}, networks=preset.imp.rounds + 1) for seed in seeds], _measure, _show)


def _measure(subject: Subject) -> Found:
    classes = torch.stack([subject.predict(ticket.flat).classes for ticket in subject.tickets])
    return {
        "densities": [ticket.density for ticket in subject.tickets],
        "disagreement": [(classes != own).double().mean(1).tolist() for own in classes],
    }


def _show(measured: Sequence[Measured]) -> Findings:
    densities = measured[0].found["densities"]
    count = len(densities)
    cells = [[spread(m.found["disagreement"][i][j] for m in measured) for j in range(count)] for i in range(count)]
    heads = [f"{page.percent(density)}%" for density in densities]
    near = [cells[i][i + 1].mean for i in range(count - 1)]
    said = f"Adjacent tickets disagree on {page.percent(sum(near) / len(near))}% of the test samples on average"
    return Findings(
        summary=f"{said}, the first and the last on {page.percent(cells[0][-1].mean)}%.",
        records=[
            {"first": i, "second": j, "first_density": densities[i], "second_density": densities[j]}
            | cells[i][j].record("disagreement")
            for i in range(count)
            for j in range(i + 1, count)
        ],
        tables=[Table("", ["density", *heads], [[h, *map(str, row)] for h, row in zip(heads, cells, strict=True)])],
        figures={"disagreement": _plot(cells, plots.short(densities))},
        note="In percent of the test samples, mean ± sample standard deviation over the seeds.",
    )


def _plot(cells: Sequence[Sequence[Spread]], labels: Sequence[str]) -> bytes:
    """Blank on the diagonal, where every ticket agrees with itself."""
    values = [[math.nan if i == j else 100 * cell.mean for j, cell in enumerate(row)] for i, row in enumerate(cells)]
    quantity = "% of the test samples that the two predict differently"
    with plots.drawing(5, 4.4) as drawn:
        axes = drawn.figure.subplots()
        plots.heat_map(axes, values, labels, axis="density", quantity=quantity, unit="%", diverging=False)
    return drawn.image
