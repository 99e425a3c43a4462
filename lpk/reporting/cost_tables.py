"""What is shown of costs: a table for the terminal and the page, the layers' densities, and scores against costs.

Functions of `results`, the content of a run's results.json, in which lpk.reporting.costs wrote them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from lpk import page
from lpk.page import Markup, element
from lpk.reporting import choice, plots
from lpk.reporting.latency import SIZES
from lpk.reporting.numbers import Scale, name

Results = Mapping[str, Any]


class Column(NamedTuple):
    """Of the table of costs.

    Attributes:
        short, head: its heads, for a terminal and for the page, with the unit.
        values: the dense network's in PyTorch, then each ticket's.
        is_time: whether the engine's times stand here, which depend on the machine.
    """

    short: str
    head: str
    values: Sequence[float]
    is_time: bool = False


def columns(results: Results) -> list[Column]:
    """Bytes, then multiply-adds and times as far as they are known. Empty: results of older versions have no costs."""
    if "costs" not in results:
        return []
    about, rows = results["costs"], [row["costs"] for row in results["rows"]]
    unit, size = _unit(about["bytes"])
    found = [Column(unit, f"file, {unit}", [each["bytes"] / size for each in (about, *rows)])]
    if about.get("products"):
        products = [each["products"] / 1e6 for each in (about, *rows)]
        found.append(Column("M mult-adds", "multiply-adds, millions", products))
    if "latency" in about:
        for size_name, samples in zip(SIZES, (1, about["latency"]["batch"]), strict=True):
            times = [each["latency"][size_name] for each in rows]
            dense = statistics.median(each["pytorch"] for each in times)
            values = [1e3 * seconds for seconds in (dense, *(each["sparse"] for each in times))]
            words = "one sample" if samples == 1 else f"{samples} samples"
            found.append(Column("ms" if samples == 1 else f"ms for {samples}", f"{words}, ms", values, True))
    return found


def table(results: Results) -> Table:
    """For the terminal."""
    shown = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=0)
    own = columns(results)
    for head in ("density", *(column.short for column in own)):
        shown.add_column(Text(head), justify="right", no_wrap=True)
    labels = ["dense", *(page.percent(row["density"]) for row in results["rows"])]
    for i, label in enumerate(labels):
        shown.add_row(label, *(three(column.values[i]) for column in own))
    return shown


def caption(results: Results) -> str:
    """What a reader of the table has to know."""
    about = results["costs"]
    text = "Costs: first the dense network, its file and its time in PyTorch; then of each ticket the sparse file"
    text += ", the multiply-adds without the zeros" if about.get("products") else ""
    if machine := about.get("latency"):
        text += f" and the time in lpk.sparsify; medians on {describe(machine)}"
    text += ". A pool costs what its ticket does."
    return f"{text} {about['problem'].rstrip('.')}." if "problem" in about else text


def describe(machine: Mapping[str, Any]) -> str:
    """Where and when latencies were measured."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{machine['processor']}, {machine['instruction_set']}, {threads}, {machine['date']}"


def three(number: float) -> str:
    """Three digits, without an exponent: 0.0123, 1.23, 12.3, 123, 1,230."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 or rounded == 0 else f"{rounded:#.3g}".rstrip(".")


def _unit(size: float) -> tuple[str, int]:
    return ("MiB", 2**20) if size >= 10 * 2**20 else ("KiB", 2**10)


# --- the page ---


def section(results: Results) -> Iterator[Markup]:
    """Costs: the pictures, the table, and the density of every layer."""
    own = columns(results)
    if not own:
        return
    yield element("h2", "Cost of a network")
    for picture, label in pictures(results):
        yield page.drawing(picture, label)
    labels = ["dense", *(f"{page.percent(row['density'])}%" for row in results["rows"])]
    lines = [[label, *(_cell(column, i) for column in own)] for i, label in enumerate(labels)]
    yield page.table(["density", *(column.head for column in own)], lines)
    yield element("p", caption(results) + " Small: relative to the first line.", class_="note")
    yield from _layers(results)


def _cell(column: Column, line: int) -> Markup:
    """A number and, small, its relation to the first one: a share, or how many times as fast."""
    first, value = column.values[0], column.values[line]
    relative = f"×{first / value:.1f}" if column.is_time else f"{value / first:.0%}"
    return element("span", three(value), element("small", relative) if line else "")


def _layers(results: Results) -> Iterator[Markup]:
    """A table that opens: a line for each pruned tensor, a column for each ticket."""
    rows = results["rows"]
    lines = [
        [tensor, *(_heat(row["costs"]["layers"][tensor]) for row in rows)] for tensor in rows[0]["costs"]["layers"]
    ]
    note = "In percent of a tensor's weights, one column for each ticket, dense to sparse."
    pools = [(row, pool) for row in rows for pool in row["pools"].values() if "costs" in pool]
    if pools:
        most = max(
            abs(density - row["costs"]["layers"][tensor])
            for row, pool in pools
            for tensor, density in pool["costs"]["layers"].items()
        )
        note += f" Of pools, which keep as many weights in all, a layer's differs by at most {100 * most:.1f}% of its"
        note += " weights."
    summary = element("summary", f"Density of the {len(lines)} pruned tensors")
    heads = ["tensor", *(f"{100 * row['density']:.3g}" for row in rows)]
    yield element("details", summary, element("p", note, class_="note"), page.table(heads, lines), class_="heat")


def _heat(density: float) -> Markup:
    return element("i", f"{100 * density:.3g}", style=f"--share:{100 * density:.0f}%")


def pictures(results: Results) -> Iterator[tuple[bytes, str]]:
    """Scores against latency, where it was measured, and against bytes, each picture with its label."""
    about, what = results["costs"], f"Test {Scale.of(results).metric} against"
    if "latency" in about:
        dense = next(column for column in columns(results) if column.is_time).values[0]
        times = [1e3 * row["costs"]["latency"]["one"]["sparse"] for row in results["rows"]]
        x = "latency of one sample, sparsified, on a CPU (logarithmic)"
        yield _picture(results, times, x, " ms", ("dense, PyTorch", dense)), f"{what} latency"
    unit, size = _unit(about["bytes"])
    sizes = [row["costs"]["bytes"] / size for row in results["rows"]]
    x, dense = "size of the sparse file (logarithmic)", about["bytes"] / size
    yield _picture(results, sizes, x, f" {unit}", ("dense file", dense)), f"{what} bytes"


def _picture(results: Results, costs: Sequence[float], x: str, unit: str, mark: tuple[str, float]) -> bytes:
    """costs: of each row, its pools included. x, unit, mark: as `trade_off_plot` takes them."""
    scale, rows = Scale.of(results), list(zip(costs, results["rows"], strict=True))
    points = [plots.Points("ticket", costs, [scale.plotted(row["ticket"]) for _, row in rows])]
    for method in results["methods"]:
        pools = [(cost, row["pools"][method]["accuracy"]) for cost, row in rows if method in row["pools"]]
        points.append(plots.Points(name(method), [c for c, _ in pools], [scale.plotted(score) for _, score in pools]))
    chosen = None
    if made := choice.of_results(results):
        cost, row = next((cost, row) for cost, row in rows if row["round"] == made.chosen.round)
        method = made.chosen.method
        chosen = cost, scale.plotted(row["ticket"] if method == choice.TICKET else row["pools"][method]["accuracy"])
    title = f"test {scale.metric}"
    return plots.trade_off_plot(points, cost=x, unit=unit, title=title, score_unit=scale.unit, mark=mark, chosen=chosen)
