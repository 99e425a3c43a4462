"""What a finished run shows its user: tables for the terminal, sentences, plots, and all of it as a page.

Everything is a function of `results`, the content of a run's results.json. Fractions in it, as accuracies are, are
shown in percent, and their gains in percentage points; scores of another metric as they are (lpk.reporting.numbers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lpk import page
from lpk.reporting import cost_tables, numbers, plots
from lpk.reporting.numbers import Scale, name
from lpk.reporting.recommendation import sentence
from lpk.reporting.summary import first, has_intervals, summary
from lpk.tickets import files

Results = Mapping[str, Any]

MISSING = {"accuracy": math.nan, "gain": dict.fromkeys(("gain", "low", "high"), math.nan)}

WIDEST = 1000  # columns, so that a measure is not cut to the terminal's


class Accuracies:
    """What a terminal shows of a run: a line for each ticket or, where that is too narrow, one for each network.

    Both say density, test accuracy, and each method's with its gain; then the means. The first method's gain comes with
    its 95% interval. The best of a ticket is bold.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = table(self.results)
        least = Measurement.get(console, options.update(width=WIDEST), wide).minimum
        yield wide if least <= options.max_width else long_table(self.results)
        yield Text(caption(self.results))  # not the table's own, which is folded to the table's width


def shown(results: Results) -> Iterator[RenderableType]:
    """For a terminal: test scores and costs, each as a table with its caption."""
    yield Accuracies(results)
    if "costs" in results:
        yield Text()
        yield cost_tables.table(results)
        yield Text(cost_tables.caption(results))


def said(results: Results) -> list[str]:
    """What pooling did, and which network is recommended."""
    return [text for text in (summary(results), sentence(results)) if text]


def caption(results: Results) -> str:
    scale = Scale.of(results)
    unit = f" in {scale.unit.strip()}" if scale.unit.strip() else ""
    interval = " (the first with its 95% interval)" if has_intervals(results) else ""
    return f"test {scale.metric}{unit}, gain over the ticket{' in points' if scale.is_percent else ''}{interval}"


def long_table(results: Results) -> Table:
    """A line for each ticket and for each of its pools."""
    shown = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=0)
    shown.add_column("density", justify="right", no_wrap=True)
    shown.add_column("network", min_width=14)
    shown.add_column("accuracy", min_width=15)
    densities = [*(page.percent(row["density"]) for row in results["rows"]), "mean"]
    for density, line in zip(densities, _lines(results), strict=True):
        for i, (head, cell) in enumerate(zip(_heads(results), line, strict=True)):
            shown.add_row("" if i else density, Text(head), _terminal_cell(*cell), end_section=i == len(line) - 1)
    return shown


def table(results: Results) -> Table:
    """A line for each ticket."""
    shown = Table(box=box.SIMPLE, show_edge=False, show_footer=True, pad_edge=False, padding=0)
    shown.footer_style = ""  # bold is for the best
    *lines, mean = ([_terminal_cell(*cell) for cell in line] for line in _lines(results))
    shown.add_column("density", Text("mean"), justify="right", no_wrap=True)
    for i, (head, foot) in enumerate(zip(_heads(results), mean, strict=True)):
        # of the numbers only the first method's may fold, between words, where the terminal is narrow
        parts = [
            part for cell in (head, foot.plain, *(line[i].plain for line in lines)) for part in _parts(cell, i == 1)
        ]
        shown.add_column(Text(head), foot, justify="right", no_wrap=i != 1, min_width=max(map(len, parts)))
    for row, line in zip(results["rows"], lines, strict=True):
        shown.add_row(Text(page.percent(row["density"])), *line)
    return shown


def _parts(text: str, folded: bool) -> list[str]:
    return text.split() if folded else [text]


def _terminal_cell(accuracy: str, gain: str, best: bool) -> Text:
    return Text.assemble((accuracy, "bold" if best else ""), f" {gain}" if gain else "")


def _heads(results: Results) -> list[str]:
    return ["ticket", *(name(method) for method in results["methods"])]


def _lines(results: Results) -> Iterator[list[tuple[str, str, bool]]]:
    """For each row, then the means: (accuracy, gain, is it the line's best) of the ticket and each method."""
    scale = Scale.of(results)
    for line in [*results["rows"], results["mean"]]:
        best = max([line["ticket"], *(pool["accuracy"] for pool in line["pools"].values())])
        cells = [(scale.score(line["ticket"]), "", line["ticket"] == best)]
        for i, method in enumerate(results["methods"]):
            if pool := line["pools"].get(method):
                known = i == 0 and pool["gain"]["low"] is not None
                interval = f" ({scale.interval(pool['gain'], '..')})" if known else ""
                gain = scale.gain(pool["gain"]["gain"]) + interval
                cells.append((scale.score(pool["accuracy"]), gain, pool["accuracy"] == best))
            else:
                cells.append(("-", "", False))
        yield cells


def accuracy_plot(results: Results) -> bytes:
    """Test score against density, as an SVG: tickets and methods, the first one's 95% interval as a band."""
    rows, scale = results["rows"], Scale.of(results)
    tickets = [scale.plotted(row["ticket"]) for row in rows]
    lines = [plots.Line("ticket", tickets)]
    for i, method in enumerate(results["methods"]):
        pools = [row["pools"].get(method, MISSING) for row in rows]
        band = None
        if i == 0 and has_intervals(results):
            low, high = (
                [ticket + scale.plotted(pool["gain"][end]) for ticket, pool in zip(tickets, pools, strict=True)]
                for end in ("low", "high")
            )
            band = plots.Band("95% interval", low, high)
        lines.append(plots.Line(name(method), [scale.plotted(pool["accuracy"]) for pool in pools], band))
    note = "band: paired over test samples, one seed; seeds vary beyond it" if lines[1:] and lines[1].band else ""
    densities = [row["density"] for row in rows]
    return plots.density_plot(densities, lines, title=f"test {scale.metric}", unit=scale.unit, note=note)


def overview(results: Results) -> Iterator[page.Markup]:
    """The sentences and the table, for a notebook."""
    yield from (page.element("p", page.typeset(text)) for text in said(results))
    yield from _accuracy_section(results)


def write(results: Results, path: str | Path) -> None:
    """Writes the report: one HTML file that needs no other, no network and no script."""
    sections = (_accuracy_section, cost_tables.section, _steps_section, _pooling_section, _manifest_section)
    content = page.document(
        results["title"],
        *(page.element("p", page.typeset(text)) for text in said(results)),
        page.drawing(accuracy_plot(results), f"Test {Scale.of(results).metric} against density"),
        *itertools.chain(*(section(results) for section in sections)),
    )
    files.write_bytes(Path(path).expanduser(), content)


def _accuracy_section(results: Results) -> Iterator[page.Markup]:
    starts = [*([row["round"], f"{page.percent(row['density'])}%"] for row in results["rows"]), ["mean", ""]]
    lines = [
        [*start, *(_accuracy_cell(*cell) for cell in line)] for start, line in zip(starts, _lines(results), strict=True)
    ]
    scale = Scale.of(results)
    yield page.element("h2", f"Test {scale.metric}")
    yield page.table(["round", "density", *_heads(results)], lines)
    unit = "percent; the" if scale.is_percent else f"{scale.unit.strip()}; the" if scale.unit.strip() else ""
    note = f"In {unit} best of a line is bold. " if unit else "The best of a line, the highest, is bold. "
    note += f"Small: the gain over the ticket{' in points' if scale.is_percent else ''}"
    if has_intervals(results):
        note += ", for the first method with its 95% interval, paired over the test samples of one seed"
    yield page.element("p", f"{note}.", class_="note")
    if layers := results.get("layers"):  # results of older versions have none
        spared = ", ".join(layers["spared"]) or "none"
        note = (
            f"Density is that of the {len(layers['pruned'])} tensors that are pruned; matrices that are not: {spared}."
        )
        yield page.element("p", note, class_="note")


def _accuracy_cell(accuracy: str, gain: str, best: bool) -> page.Markup:
    small = page.element("small", page.typeset(gain)) if gain else ""
    return page.element("span", page.element("b" if best else "span", page.typeset(accuracy)), small)


def _steps_section(results: Results) -> Iterator[page.Markup]:
    """What became of each candidate that the first method offered to each target."""
    density = {row["round"]: f"{page.percent(row['density'])}%" for row in results["rows"]}
    if not results["methods"]:
        return
    yield page.element("h2", f"Steps: {name(first(results))}")
    note = "A box is a candidate, nearest round first; filled: accepted. Open a target to read its steps; "
    yield page.element("p", note + "a dash there means not scored in full.", class_="note")
    for row in results["rows"]:
        if pool := row["pools"].get(first(results)):
            outcomes = ["accepted" if step["accepted"] else "rejected" for step in pool["steps"]]
            head = page.element(
                "summary",
                page.element("span", f"round {row['round']}, {density[row['round']]}", class_="target"),
                page.element("span", *(page.element("i", class_=outcome) for outcome in outcomes), class_="boxes"),
                page.element("small", f"{outcomes.count('accepted')} of {len(outcomes)} accepted"),
            )
            unit = pool.get("validation_unit", numbers.PERCENT)
            score = "accuracy" if unit == numbers.PERCENT else "score"
            before = numbers.validation(pool["baseline_validation_accuracy"], unit)
            after = numbers.validation(pool["validation_accuracy"], unit)
            text = f"{row['keep']:,} weights remain. Validation {score}: {before} before, {after} after."
            lines = [
                [
                    step["candidate"],
                    density.get(step["candidate"], "–"),
                    "–" if step["coefficient"] is None else f"{step['coefficient']:.3g}",
                    "–" if step["accuracy"] is None else numbers.validation(step["accuracy"], unit),
                    outcome,
                ]
                for step, outcome in zip(pool["steps"], outcomes, strict=True)
            ]
            heads = ["candidate (round)", "density", "coefficient", f"validation {score}", "outcome"]
            yield page.element("details", head, page.element("p", text), page.table(heads, lines))


def _pooling_section(results: Results) -> Iterator[page.Markup]:
    lines = []
    for method in results["methods"]:
        pools = [row["pools"][method] for row in results["rows"] if method in row["pools"]]
        candidates = sum(len(pool["steps"]) for pool in pools)
        samples = sum(pool["forward_samples"] for pool in pools)
        seconds = sum(pool["seconds"] for pool in pools)
        lines.append([name(method), len(pools), f"{candidates:,}", f"{samples:,}", f"{seconds:,.1f}"])
    yield page.element("h2", "Cost of pooling")
    yield page.table(["", "targets", "candidates", "forward samples", "seconds"], lines)
    stages = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in results["seconds"].items())
    note = f"Forward samples: how many went through a network, calibration included. The whole run: {stages}."
    yield page.element("p", note, class_="note")


def _manifest_section(results: Results) -> Iterator[page.Markup]:
    yield page.element("h2", "How to repeat it")
    yield page.definitions(results["manifest"])
