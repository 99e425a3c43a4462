"""Tickets, pools, SWA and EMA at every density (Figure 3a and 3b, Tables 6 to 8), beside the paper's own numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from lpk import presets
from lpk.experiments import pools
from lpk.experiments.findings import Findings, Table
from lpk.experiments.study import Measured, Plan
from lpk.presets import Preset

VARIANTS: dict[str, pools.Options] = {
    "original tickets": None,
    "Lottery Pools (interpolation)": pools.INTERPOLATION,
    "Lottery Pools (average)": pools.AVERAGE,
    "SWA": {"method": "swa"},
    "EMA (network so far 0.95)": {"method": "ema"},
    "EMA (newcomer 0.95)": {"method": "ema-newcomer"},
}
IN_THE_PAPER = {  # behind which line the paper's own stands
    "Lottery Pools (interpolation)": "interpolation",
    "Lottery Pools (average)": "average",
    "SWA": "swa",
    "EMA (newcomer 0.95)": "ema",
    "original tickets": "ticket",
}
FIRST_TABLE = 9  # densities: Table 6 has so many, Table 7 the rest


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    def show(measured: Sequence[Measured]) -> Findings:
        cells = pools.cells(measured, VARIANTS)
        figures = {"gains": pools.gain_plot(cells)}
        return pools.findings(cells, _tables(cells, paper_numbers(preset)), _note(preset), figures)

    return pools.plan(preset, seeds, VARIANTS, show)


def paper_numbers(preset: Preset) -> dict[str, Any] | None:
    """The paper's numbers as it prints them, {"tables", "densities", "accuracies"}; None for a preset of one's own."""
    table = json.loads(resources.files(__package__).joinpath("paper_tables.json").read_text())
    numbers: dict[str, Any] | None = table["presets"].get(preset.name)
    return numbers if numbers and preset == presets.load(preset.name) else None


def _tables(cells: pools.Cells, paper: dict[str, Any] | None) -> list[Table]:
    """In the layout of the paper's tables: the pools first, the tickets last."""
    tickets, *others = cells
    rows = {label: cells[label] for label in (*others, tickets)}
    count = len(cells[tickets])
    if count <= FIRST_TABLE + 1:
        return [_table(rows, slice(0, count), paper)]
    return [_table(rows, chunk, paper) for chunk in (slice(0, FIRST_TABLE), slice(FIRST_TABLE, count))]


def _table(rows: pools.Cells, chunk: slice, paper: dict[str, Any] | None) -> Table:
    own = pools.table("", rows, chunk)
    if paper is None:
        return own
    lines: list[Sequence[str]] = []
    place = {}
    for i, (label, line) in enumerate(zip(rows, own.lines, strict=True)):
        place[i] = len(lines)
        lines.append(line)
        if label in IN_THE_PAPER:
            numbers = paper["accuracies"][IN_THE_PAPER[label]][chunk]
            lines.append(["… in the paper", *numbers, *["–"] * (len(line) - 1 - len(numbers))])
    return Table(own.title, own.heads, lines, [(place[i], j) for i, j in own.best])


def _note(preset: Preset) -> str:
    paper = paper_numbers(preset)
    if paper is None:
        return f"{pools.NOTE} The paper's numbers stand here where the preset is one of the paper's."
    tables = " and ".join(map(str, paper["tables"]))
    return f"{pools.NOTE} In the paper: Table {tables}, over three runs (ImageNet: one); it prints one density fewer."
