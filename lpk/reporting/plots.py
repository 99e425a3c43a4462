"""Plots as SVG, drawn in the light colours of the page, which exchanges them where it is dark."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lpk import extras
from lpk.page import LIGHT

if TYPE_CHECKING:  # matplotlib is imported where it draws: that takes longer than most commands of lpk
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("ticket", "series0", "series1", "series2", "series3", "series4")
MARKERS = "oosD^v"
MOST_NUMBERS = 14  # in a row of a heat map, which has no room for more
MOST_LABELS = 20


def need() -> None:
    """Raises ImportError without matplotlib: whoever is to write a report asks before anything takes time."""
    extras.need("a report", "matplotlib")


@dataclass(frozen=True)
class Band:
    """How far off a line's values may be: from `low` to `high`, NaN where there is none."""

    label: str
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Line:
    """One value for each density, or whatever else x is, in percent or points, NaN where there is none."""

    label: str
    y: Sequence[float]
    band: Band | None = None


class Drawing:
    """What `drawing` yields: the figure, and once it was left, the image."""

    figure: Figure
    image: bytes


@contextmanager
def drawing(width: float, height: float) -> Iterator[Drawing]:
    """An empty figure of this size in inches; what is drawn on it becomes `image`, an SVG."""
    need()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {"svg.hashsalt": "lpk", "font.size": 9}]):  # not the user's matplotlibrc
        drawn, image = Drawing(), io.BytesIO()
        drawn.figure = Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT["page"])
        yield drawn
        drawn.figure.savefig(image, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        drawn.image = image.getvalue()


def density_plot(
    densities: Sequence[float], lines: Sequence[Line], *, title: str = "test accuracy", unit: str = "%", note: str = ""
) -> bytes:
    """Test scores against density: the first line is the tickets'. note: on what is drawn, below it."""
    with drawing(5, 3.6) as drawn:
        axes = drawn.figure.subplots()
        axes.set_title(title, loc="left", parse_math=False, fontsize=9, color=LIGHT["soft"])
        x = [100 * density for density in densities]
        axes.set_xlabel("density (weights remaining, logarithmic)", color=LIGHT["soft"])
        draw_lines(axes, x, lines, unit, least=1 if unit == "%" else 0)
        _logarithmic(axes, x, "%")
        axes.invert_xaxis()  # dense on the left
        value_scale(axes, unit)
        if note:
            axes.set_xlabel(f"{axes.get_xlabel()}\n{note}")
        columns = 3 if max(len(line.label) for line in lines) < 24 else 2
        drawn.figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=LIGHT["ink"])
    return drawn.image


def draw_lines(axes: Axes, x: Sequence[float], lines: Sequence[Line], unit: str, *, least: float = 1) -> None:
    """The first line dashed, the second one thick.

    These two and their bands decide the scale. A line far below is cut off at the lower edge, and the plot says so
    under the label of x: it would flatten the rest. `least`: what these two are taken to spread over at least.
    """
    essential = [value for line in lines[:2] for value in _values(line) if math.isfinite(value)]
    edge = min(essential) - max(max(essential) - min(essential), least)
    cut = []
    for i, line in enumerate(lines):
        color = LIGHT[COLOURS[i % len(COLOURS)]]
        size, width, above = (5.5, 2.4, 5) if i == 1 else (4, 1.2 if i else 1.4, 3 if i else 4)
        marker = MARKERS[i % len(MARKERS)] + ("-" if i else "--")
        axes.plot(x, line.y, marker, color=color, lw=width, ms=size, zorder=above, label=line.label)
        if line.band:
            low, high = line.band.low, line.band.high
            axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0, label=line.band.label)
            axes.vlines(x, low, high, color=color, alpha=0.3, lw=1.5)  # a point that has no neighbour has no area
        if below := {place: value for place, value in zip(x, line.y, strict=True) if value < edge}:
            axes.plot(list(below), [edge] * len(below), "v", color=color, ms=7, clip_on=False)
            cut.append(f"{line.label} falls to {min(below.values()):{'.1f' if least else '.4g'}}{unit}")
    if cut:
        top = max(value for line in lines for value in _values(line) if math.isfinite(value))
        axes.set_ylim(edge, top + 0.05 * (top - edge))
        axes.set_xlabel(f"{axes.get_xlabel()}\n▾ off the scale: {', '.join(cut)}")


def _values(line: Line) -> Sequence[float]:
    return [*line.y, *line.band.low, *line.band.high] if line.band else line.y


def _logarithmic(axes: Axes, values: list[float], unit: str) -> None:
    """The scale of x, with few round ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    margin = max(max(values) / min(values), 1.5) ** 0.03
    low, high = min(values) / margin, max(values) * margin
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    steps = (1, 2, 5) if high / low > 20 else (1, 2, 3, 5, 7) if high / low > 3 else fine
    ticks = [step * 10.0**n for n in decades for step in steps if low <= step * 10.0**n <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 2 else values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}")


@dataclass(frozen=True)
class Points:
    """Networks of one kind: what each costs, and its score."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def trade_off_plot(
    points: Sequence[Points],
    *,
    cost: str,
    unit: str,
    title: str,
    score_unit: str,
    mark: tuple[str, float] | None = None,
    chosen: tuple[float, float] | None = None,
) -> bytes:
    """Scores against what they cost: the first kind of points is the tickets'.

    Networks than which no other is both cheaper and better are ringed and joined. As in `draw_lines`, the first two
    kinds decide the scale, and what lies far below is left out.

    Args:
        cost: the label of x. unit: of its ticks.
        mark: another cost to compare with, in words and as a number.
        chosen: the point of the network that is recommended.
    """
    with drawing(5, 3.4) as drawn:
        axes = drawn.figure.subplots()
        axes.set_title(title, loc="left", parse_math=False, fontsize=9, color=LIGHT["soft"])
        essential = [y for some in points[:2] for y in some.y]
        edge = min(essential) - (max(essential) - min(essential))
        for i, some in enumerate(points):
            shown = [(x, y) for x, y in zip(some.x, some.y, strict=True) if y >= edge]
            x, y = zip(*shown, strict=True) if shown else ((), ())
            color, size = LIGHT[COLOURS[i % len(COLOURS)]], 5.5 if i < 2 else 4
            axes.plot(x, y, MARKERS[i % len(MARKERS)], color=color, ms=size, label=some.label, zorder=4 if i < 2 else 3)
        best = front([(x, y) for some in points for x, y in zip(some.x, some.y, strict=True)])
        x, y = zip(*best, strict=True)
        axes.plot(x, y, "-", color=LIGHT["ink"], lw=1, zorder=2, drawstyle="steps-post")
        axes.plot(x, y, "o", mfc="none", mec=LIGHT["ink"], ms=10, mew=1, zorder=2, label="best for its cost")
        if chosen:
            axes.plot(*chosen, "s", mfc="none", mec=LIGHT["ink"], ms=14, mew=1, zorder=2, label="recommended")
        if mark:
            axes.axvline(mark[1], color=LIGHT["soft"], lw=1, ls=":", label=mark[0])
        axes.set_xlabel(cost, color=LIGHT["soft"])
        _logarithmic(axes, [x for some in points for x in some.x] + ([mark[1]] if mark else []), unit)
        value_scale(axes, score_unit)
        drawn.figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=LIGHT["ink"])
    return drawn.image


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) those that no other is at most as costly as and better than, nor cheaper than and as good; by
    cost."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def value_scale(axes: Axes, unit: str) -> None:
    """Few ticks, a rule at each, no frame."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}{unit}")
    axes.grid(axis="y", color=LIGHT["rule"], lw=0.8)
    axes.set(axisbelow=True, facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["soft"])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(color=LIGHT["soft"], labelcolor=LIGHT["ink"])


def short(densities: Iterable[float]) -> list[str]:
    """Densities as labels of an axis."""
    return [f"{100 * density:.3g}%" for density in densities]


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    axis: str,
    quantity: str,
    unit: str,
    diverging: bool,
) -> None:
    """Cells [row][column] of one colour each, NaN left blank, with numbers where there is room.

    Args:
        labels: of the rows, which are those of the columns.
        axis: what the labels are, the title of both axes.
        quantity: what the values are, with their unit, which stands by the colours.
        unit: behind the numbers there.
        diverging: the colours change at 0; otherwise they run from the smallest to the largest value.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    finite = [value for row in values for value in row if math.isfinite(value)] or [0.0]
    most = max(*map(abs, finite), 1e-9)
    scale = Normalize(-most, most) if diverging else Normalize(min(finite), max(finite))
    colours = colormaps["RdBu" if diverging else "viridis"]
    mesh = axes.pcolormesh(values, cmap=colours, norm=scale)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if len(labels) <= MOST_NUMBERS and math.isfinite(value):
                red, green, blue, _ = colours(scale(value))
                ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                text = f"{round(value, 1) + 0.0:.1f}"  # never -0.0
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=6)
    step = math.ceil(len(labels) / MOST_LABELS)
    places = [i + 0.5 for i in range(0, len(labels), step)]
    axes.set_xticks(places, labels[::step], rotation=90, fontsize=7)
    axes.set_yticks(places, labels[::step], fontsize=7)
    axes.set(aspect="equal", facecolor="none")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=LIGHT["ink"])
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.7, format=lambda value, _: f"{value:.3g}{unit}")
    bar.set_label(quantity, color=LIGHT["soft"], fontsize=8)
    axes.set_xlabel(axis, color=LIGHT["soft"], fontsize=8)
    axes.set_ylabel(axis, color=LIGHT["soft"], fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=0, labelcolor=LIGHT["ink"])
