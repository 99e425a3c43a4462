"""What a finished run shows its user: a table for the terminal, a sentence, a plot, and all of it as a page.

Everything is a function of `results`, the content of a run's results.json. Accuracies in it are fractions;
shown are percent, and gains in percentage points.
"""

from __future__ import annotations

import html
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from lpk import files

if TYPE_CHECKING:  # matplotlib is imported where it draws: that takes longer than most commands of lpk
    from matplotlib.axes import Axes

Results = Mapping[str, Any]

NAMES = {"interpolation": "pool (interpolation)", "average": "pool (average)", "swa": "SWA", "ema": "EMA"}

# name: (light, dark). The plot is drawn in the light colours, by which the page finds and exchanges them. The
# series are Okabe and Ito's, which the colour-blind can tell apart, in the order of results["methods"].
PALETTE = {
    "page": ("#fefefe", "#16181c"),
    "ink": ("#1f2328", "#e4e6e9"),
    "soft": ("#5c6570", "#a0a8b2"),
    "rule": ("#dfe3e8", "#33383f"),
    "ticket": ("#6f7680", "#9aa2ad"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#d55e00", "#ee8a3c"),
    "series2": ("#009e73", "#2bbf93"),
    "series3": ("#cc79a7", "#e09cc3"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}

STYLE = """
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
figure { margin: 1.5rem 0; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
.note, small, dt, th { color: var(--soft); }
.note, table, dl { font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
tr > * { text-align: right; padding: .3rem 0 .3rem 1rem; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th { font-weight: normal; vertical-align: bottom; line-height: 1.25; }
tr > :first-child { text-align: left; padding-left: 0; }
small { font-size: .8rem; margin-left: .3rem; }
details { border-bottom: 1px solid var(--rule); }
details > :not(summary) { margin: .5rem 0 1rem 1.6rem; }
summary { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem 1rem; padding: .45rem 0; }
summary { cursor: pointer; }
summary::before { content: "▸"; color: var(--soft); }
[open] > summary::before { content: "▾"; }
.target { min-width: 10.5rem; font-variant-numeric: tabular-nums; }
.boxes { display: flex; flex-wrap: wrap; gap: 3px; flex: 1; }
.boxes i { width: .6rem; height: .6rem; border: 1.5px solid var(--series0); border-radius: 2px; }
.boxes .accepted { background: var(--series0); }
dl { columns: 2 18rem; column-gap: 2rem; }
dl div { display: flex; gap: 1rem; justify-content: space-between; break-inside: avoid; }
dd { margin: 0; overflow-wrap: anywhere; text-align: right; }
@media (max-width: 40rem) {
  tr > * { padding-left: .6rem; }
  td small { display: block; }
  .target { flex: 1; }
  .boxes { flex: 0 0 100%; order: 1; margin-left: 1.6rem; }
  details > :not(summary) { margin-left: 0; }
}
"""

MISSING = {"accuracy": math.nan, "gain": dict.fromkeys(("gain", "low", "high"), math.nan)}


def table(results: Results) -> Table:
    """One line for each ticket: density, test accuracy, and each method's with its gain; then the means.

    The first method's gain comes with its 95% interval. The best of a line is bold.
    """
    shown = Table(box=box.SIMPLE, show_edge=False, show_footer=True, pad_edge=False, padding=0)
    shown.caption = "test accuracy in %, gain over the ticket in points (the first with its 95% interval)"
    shown.caption_justify = "left"
    shown.footer_style = ""  # bold is for the best
    *lines, mean = ([_terminal_cell(*cell) for cell in line] for line in _lines(results))
    shown.add_column("density", Text("mean"), justify="right", no_wrap=True)
    for i, (head, foot) in enumerate(zip(_heads(results), mean, strict=True)):
        # of the numbers only the first method's may fold, between words, where the terminal is narrow
        shown.add_column(Text(head), foot, justify="right", no_wrap=i != 1, min_width=11 if i == 1 else None)
    for row, line in zip(results["rows"], lines, strict=True):
        shown.add_row(Text(_percent(row["density"])), *line)
    return shown


def _terminal_cell(accuracy: str, gain: str, best: bool) -> Text:
    return Text.assemble((accuracy, "bold" if best else ""), f" {gain}" if gain else "")


def _heads(results: Results) -> list[str]:
    return ["ticket", *(_name(method) for method in results["methods"])]


def _lines(results: Results) -> Iterator[list[tuple[str, str, bool]]]:
    """For each row, then the means: (accuracy, gain, is it the line's best) of the ticket and each method."""
    for line in [*results["rows"], results["mean"]]:
        best = max([line["ticket"], *(pool["accuracy"] for pool in line["pools"].values())])
        cells = [(_percent(line["ticket"]), "", line["ticket"] == best)]
        for i, method in enumerate(results["methods"]):
            if pool := line["pools"].get(method):
                interval = f" ({_interval(pool['gain'], '..')})" if i == 0 else ""
                gain = _points(pool["gain"]["gain"]) + interval
                cells.append((_percent(pool["accuracy"]), gain, pool["accuracy"] == best))
            else:
                cells.append(("-", "", False))
        yield cells


def summary(results: Results) -> str:
    """One or two sentences on the first method: mean gain, on how many targets it is better, best gain."""
    method = _first(results)
    rows = [row for row in results["rows"] if method in row["pools"]]
    gains = [row["pools"][method]["gain"] for row in rows]
    if not gains:
        return "No ticket was pooled."
    subject = f"The {_name(method)}" if _name(method).startswith("pool") else _name(method)
    best = max(rows, key=lambda row: row["pools"][method]["gain"]["gain"])
    where = f"at density {_percent(best['density'])}%"
    if len(gains) == 1:
        return f"{subject} {_effect(gains[0], where)}."
    better, clearly = (sum(gain[key] > 0 for gain in gains) for key in ("gain", "low"))
    count = {0: "none", len(gains): "all"}.get(better, better)
    counted = f"is better on {count} of the {len(gains)} targets"
    counted += f" (on {clearly} the interval lies above 0)" if better else ""
    counted += f"; its best result is {_points(best['pools'][method]['gain']['gain'])} points {where}."
    if method not in results["mean"]["pools"]:
        return f"{subject} {counted}"
    return f"{subject} {_effect(results['mean']['pools'][method]['gain'], 'on average')}. It {counted}"


def _effect(gain: Mapping[str, float], where: str) -> str:
    """What may be said about a gain with this interval."""
    points, interval = _points(gain["gain"]), f"(95% interval {_interval(gain, ' to ')})"
    if gain["low"] <= 0 <= gain["high"]:
        return f"makes no clear difference: {points} points of test accuracy {where} {interval}"
    verb = "raises" if gain["low"] > 0 else "lowers"
    return f"{verb} test accuracy by {points.lstrip('+-')} points {where} {interval}"


def accuracy_plot(results: Results) -> bytes:
    """Test accuracy against density, as an SVG: tickets and methods, the first one's 95% interval as a band.

    A method far below all that is cut off at the lower edge, and the plot says so: it would flatten the rest.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {"svg.hashsalt": "lpk", "font.size": 9}]):  # not the user's matplotlibrc
        figure = Figure(figsize=(5, 3.6), layout="constrained", facecolor=LIGHT["page"])
        axes = figure.subplots()
        _draw_lines(axes, results)
        _draw_scales(axes, [100 * row["density"] for row in results["rows"]])
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=LIGHT["ink"])
        image = io.BytesIO()
        figure.savefig(image, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return image.getvalue()


def _draw_lines(axes: Axes, results: Results) -> None:
    rows, blue, soft = results["rows"], LIGHT["series0"], LIGHT["soft"]
    x, tickets = [100 * row["density"] for row in rows], [100 * row["ticket"] for row in rows]
    first = [row["pools"].get(_first(results), MISSING) for row in rows]
    low, high = (
        [ticket + 100 * pool["gain"][end] for ticket, pool in zip(tickets, first, strict=True)]
        for end in ("low", "high")
    )
    essential = [y for y in (*tickets, *low, *high) if math.isfinite(y)]
    edge = min(essential) - max(max(essential) - min(essential), 1)
    axes.plot(x, tickets, "o--", color=LIGHT["ticket"], lw=1.4, ms=4, label="ticket", zorder=4)
    cut = []
    for i, method in enumerate(results["methods"]):
        y = [100 * row["pools"].get(method, MISSING)["accuracy"] for row in rows]
        color = LIGHT[f"series{i % 4}"]
        lines = axes.plot(x, y, "osD^"[i % 4] + "-", color=color, lw=1.2, ms=4, zorder=3, label=_name(method))
        if i == 0:
            lines[0].set(linewidth=2.4, markersize=5.5, zorder=5)
        if below := {place: value for place, value in zip(x, y, strict=True) if value < edge}:
            axes.plot(list(below), [edge] * len(below), "v", color=color, ms=7, clip_on=False)
            cut.append(f"{_name(method)} falls to {min(below.values()):.1f}%")
    axes.fill_between(x, low, high, color=blue, alpha=0.18, lw=0, label="95% interval")
    axes.vlines(x, low, high, color=blue, alpha=0.3, lw=1.5)  # a point that has no neighbour has no area
    axes.set_xlabel("density (weights remaining, logarithmic)", color=soft)
    if cut:
        axes.set_ylim(bottom=edge)
        axes.set_xlabel(f"{axes.get_xlabel()}\n▾ off the scale: {', '.join(cut)}")


def _draw_scales(axes: Axes, densities: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    margin = max(max(densities) / min(densities), 1.5) ** 0.03
    low, high = min(densities) / margin, max(densities) * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 3, 5, 7) if high / low < 20 else (1, 2, 5)
    ticks = [step * 10.0**n for n in decades for step in steps if low <= step * 10.0**n <= high]
    axes.set_xscale("log")
    axes.set_xlim(high, low)  # dense on the left
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 2 else densities))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}%")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}%")
    axes.set_title("test accuracy", loc="left", fontsize=9, color=LIGHT["soft"])
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.set(axisbelow=True, facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["soft"])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(color=LIGHT["soft"], labelcolor=LIGHT["ink"])


def write(results: Results, path: str | Path) -> None:
    """Writes the report: one HTML file that needs no other, no network and no script."""
    # an argument that is not UTF-8 reaches the manifest as lone surrogates, which UTF-8 cannot write
    files.write_bytes(Path(path), _page(results).encode("utf-8", errors="xmlcharrefreplace"))


class _Markup(str):
    """HTML. Any other string is text, and escaped on its way into an element."""


def _element(name: str, *children: object, **attributes: object) -> _Markup:
    """<name ...>children</name>; class_ stands for class."""
    start = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, _Markup) else html.escape(str(child)) for child in children)
    return _Markup(f"<{name}{start}>{inner}</{name}>")


def _page(results: Results) -> str:
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in PALETTE.items()) for i in (0, 1))
    colours = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    viewport = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = _element("style", _Markup(colours + STYLE))
    sections = (_accuracy_section, _steps_section, _cost_section, _manifest_section)
    body = _element(
        "main",
        _element("h1", results["title"]),
        _element("p", _typeset(summary(results))),
        _element("figure", _inline_plot(results)),
        *itertools.chain(*(section(results) for section in sections)),
    )
    head = _element("head", _Markup(viewport), _element("title", results["title"]), style)
    return "<!DOCTYPE html>\n" + _element("html", head, _element("body", body), lang="en") + "\n"


def _inline_plot(results: Results) -> _Markup:
    """The SVG as a part of the page: without its XML prologue, in the page's colours."""
    image = accuracy_plot(results).decode()
    for name, light in LIGHT.items():
        image = image.replace(light, f"var(--{name})")
    return _Markup('<svg role="img" aria-label="Test accuracy against density"' + image.partition("<svg")[2])


def _accuracy_section(results: Results) -> Iterator[_Markup]:
    starts = [*([row["round"], f"{_percent(row['density'])}%"] for row in results["rows"]), ["mean", ""]]
    lines = [
        [*start, *(_accuracy_cell(*cell) for cell in line)] for start, line in zip(starts, _lines(results), strict=True)
    ]
    yield _element("h2", "Test accuracy")
    yield _table(["round", "density", *_heads(results)], lines)
    note = "In percent; the best of a line is bold. Small: the gain over the ticket in points, for the first "
    yield _element("p", note + "method with its paired 95% interval over the test samples.", class_="note")


def _accuracy_cell(accuracy: str, gain: str, best: bool) -> _Markup:
    small = _element("small", _typeset(gain)) if gain else ""
    return _element("span", _element("b" if best else "span", _typeset(accuracy)), small)


def _steps_section(results: Results) -> Iterator[_Markup]:
    """What became of each candidate that the first method offered to each target."""
    density = {row["round"]: f"{_percent(row['density'])}%" for row in results["rows"]}
    if not results["methods"]:
        return
    yield _element("h2", f"Steps: {_name(_first(results))}")
    note = "A box is a candidate, nearest round first; filled: accepted. Open a target to read its steps; "
    yield _element("p", note + "a dash there means not scored in full.", class_="note")
    for row in results["rows"]:
        if pool := row["pools"].get(_first(results)):
            outcomes = ["accepted" if step["accepted"] else "rejected" for step in pool["steps"]]
            head = _element(
                "summary",
                _element("span", f"round {row['round']}, {density[row['round']]}", class_="target"),
                _element("span", *(_element("i", class_=outcome) for outcome in outcomes), class_="boxes"),
                _element("small", f"{outcomes.count('accepted')} of {len(outcomes)} accepted"),
            )
            before = _percent(pool["baseline_validation_accuracy"])
            after = _percent(pool["validation_accuracy"])
            text = f"{row['keep']:,} weights remain. Validation accuracy: {before}% before, {after}% after."
            lines = [
                [
                    step["candidate"],
                    density.get(step["candidate"], "–"),
                    "–" if step["coefficient"] is None else f"{step['coefficient']:.3g}",
                    "–" if step["accuracy"] is None else f"{_percent(step['accuracy'])}%",
                    outcome,
                ]
                for step, outcome in zip(pool["steps"], outcomes, strict=True)
            ]
            heads = ["candidate (round)", "density", "coefficient", "validation accuracy", "outcome"]
            yield _element("details", head, _element("p", text), _table(heads, lines))


def _cost_section(results: Results) -> Iterator[_Markup]:
    lines = []
    for method in results["methods"]:
        pools = [row["pools"][method] for row in results["rows"] if method in row["pools"]]
        candidates = sum(len(pool["steps"]) for pool in pools)
        samples = sum(pool["forward_samples"] for pool in pools)
        seconds = sum(pool["seconds"] for pool in pools)
        lines.append([_name(method), len(pools), f"{candidates:,}", f"{samples:,}", f"{seconds:,.1f}"])
    yield _element("h2", "Cost")
    yield _table(["", "targets", "candidates", "forward samples", "seconds"], lines)
    stages = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in results["seconds"].items())
    note = f"Forward samples: how many went through a network, calibration included. The whole run: {stages}."
    yield _element("p", note, class_="note")


def _manifest_section(results: Results) -> Iterator[_Markup]:
    pairs = (_element("dt", key) + _element("dd", value) for key, value in _flattened(results["manifest"]))
    yield _element("h2", "How to repeat it")
    yield _element("dl", *(_element("div", _Markup(pair)) for pair in pairs))


def _flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(heads: Iterable[object], lines: Iterable[Iterable[object]]) -> _Markup:
    head = _element("thead", _element("tr", *(_element("th", cell) for cell in heads)))
    body = _element("tbody", *(_element("tr", *(_element("td", cell) for cell in line)) for line in lines))
    return _element("div", _element("table", head, body), class_="scroll")


def _first(results: Results) -> str:
    return next(iter(results["methods"]), "")


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if fraction == 0 or fraction >= 0.001 else f"{100 * fraction:.2g}"


def _points(gain: float) -> str:
    return f"{round(100 * gain, 2) + 0.0:+.2f}"  # + 0.0: a gain that rounds to zero is +0.00, never -0.00


def _interval(gain: Mapping[str, float], between: str) -> str:
    return f"{_points(gain['low'])}{between}{_points(gain['high'])}"


def _typeset(text: str) -> str:
    """For the page, which has room and knows a minus sign; not every terminal does."""
    return text.replace("-", "−").replace("..", " to ")
