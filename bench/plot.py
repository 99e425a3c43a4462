"""Draws bench/results/*.json: time per element against size, one small multiple for each operation, one file a machine.

python -m bench.plot [results.json ...] [--out docs/bench]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.results import Row, describe
from lpk.tickets import files

HERE = Path(__file__).parent
OPERATIONS = {
    "interpolate": "interpolate",
    "interpolate_threshold": "interpolate and find the threshold",
    "interpolate_prune": "interpolate and prune (a search step)",
    "magnitude_mask": "magnitude mask",
}
# Okabe and Ito's colours, told apart by the colour-blind too; a peer has the same one in every panel.
LPK, FLOOR = "#000000", "#777777"
PEERS = {
    "lpk.triton": "#56B4E9",
    "lpk.packed": "#56B4E9",
    "torch.lerp": "#0072B2",
    "torch weighted sum": "#D55E00",
    "torch.topk": "#D55E00",
    "torch.kthvalue": "#0072B2",
    "numpy": "#009E73",
    "numpy.partition": "#009E73",
    "cupy": "#E69F00",
    "cupy.partition": "#E69F00",
    "cub.topk": "#009E73",  # NumPy's, which is never beside it
    "flashinfer.top_k": "#882255",  # one of Paul Tol's: Okabe and Ito's yellow can't be read on white
    "global_unstructured": "#CC79A7",
}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "lpk",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


def sweep(rows: list[Row], operation: str, device: str) -> list[Row]:
    """The rows that differ from the main case in size alone, by size."""
    of_device = [row for row in rows if row["device"] == device and row["operation"] == operation]
    threads = max((row["threads"] or 0 for row in of_device), default=0)
    usual = {"dtype": "float32", "density": 0.2, "distribution": "normal"}
    chosen = [row for row in of_device if row | usual == row and (row["threads"] or 0) == threads]
    shared = 11 if any(row["coefficients"] == 11 for row in chosen) else 1
    return sorted((row for row in chosen if row["coefficients"] == shared), key=lambda row: row["n"])


def nanoseconds(row: Row) -> float:
    return row["milliseconds"] * 1e6 / row["n"]


def panel(axes: Axes, rows: list[Row], sizes: list[int]) -> None:
    """One operation: a line for each contestant, named at its right end, and the floor below them."""
    ends = []
    own = [row for row in rows if row["peer"] == "lpk"]
    for peer in ("lpk", *PEERS):
        points = [row for row in rows if row["peer"] == peer]
        if points:
            colour, width = (LPK, 2.0) if peer == "lpk" else (PEERS[peer], 1.2)
            ends.append(line(axes, points, [nanoseconds(p) for p in points], peer, color=colour, linewidth=width))
    floored = [row for row in own if row["to_floor"]]
    if floored:
        floor = [nanoseconds(row) / row["to_floor"] for row in floored]
        ends.append(line(axes, floored, floor, "copy floor", color=FLOOR, linewidth=1.2, linestyle=(0, (4, 2))))
    axes.set(xscale="log", yscale="log", xlim=(sizes[0] / 1.3, sizes[-1] * 1.3))
    powers = [2**exponent for exponent in range(8, 32, 4) if sizes[0] <= 2**exponent <= sizes[-1]]
    axes.xaxis.set_major_locator(FixedLocator(powers or sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: size_name(round(n))))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    name_ends(axes, ends)


def line(axes: Axes, rows: list[Row], times: list[float], name: str, **look):
    marker = {"marker": "o", "markersize": 3} if name != "copy floor" else {}
    axes.plot([row["n"] for row in rows], times, **marker, **look)
    return rows[-1]["n"], times[-1], name, look["color"]


def name_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes each line's name beside its last point, moved up where two would overlap."""
    gap = 13  # pixels at 100 dpi
    axes.figure.canvas.draw()
    bottom = None
    for n, time, name, colour in sorted(ends, key=lambda end: end[1]):
        wanted = axes.transData.transform((n, time))[1]
        place = wanted if bottom is None else max(wanted, bottom + gap)
        bottom = place
        right = axes.transAxes.transform((1, 0))[0]
        axes.annotate(
            name,
            axes.transAxes.inverted().transform((right, place)),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold" if name == "lpk" else "normal",
        )


def size_name(n: int) -> str:
    for unit, name in ((2**20, "Mi"), (2**10, "Ki")):
        if n >= unit:
            return f"{n / unit:g} {name}"
    return str(n)


def draw(result: Row, device: str, path: Path) -> None:
    sweeps = {name: rows for name in OPERATIONS if (rows := sweep(result["rows"], name, device))}
    sizes = sorted({row["n"] for rows in sweeps.values() for row in rows})
    columns = min(2, len(sweeps))
    lines = -(-len(sweeps) // columns)
    with matplotlib.rc_context(STYLE):
        height = 2.7 * lines + 0.8
        figure, grid = plt.subplots(lines, columns, figsize=(4.9 * columns, height), squeeze=False, dpi=100)
        # Room for the names at the right of each panel, and for the heading.
        figure.subplots_adjust(
            left=0.06, right=0.84, wspace=0.66, hspace=0.35, top=1 - 0.95 / height, bottom=0.35 / height
        )
        write = functools.partial(figure.text, 0.012, va="top")
        write(1 - 0.12 / height, "Nanoseconds per element and coefficient, by number of weights", fontsize=12)
        notes = "float32, 20% kept; 11 coefficients share one sweep for their thresholds.\n"
        notes += f"{describe(result['machine'], device)}, {result['date']}."
        write(1 - 0.34 / height, notes, fontsize=8, color="#555555")
        for axes in grid.flat[len(sweeps) :]:
            axes.set_visible(False)
        for axes, (operation, rows) in zip(grid.flat, sweeps.items(), strict=False):
            axes.set_title(OPERATIONS[operation])
            panel(axes, rows, sizes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.plot")
    parser.add_argument("results", nargs="*", type=Path, help="default: those of the kernels in bench/results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "bench", help="default: docs/bench")
    given = parser.parse_args()
    for source in given.results or sorted((HERE / "results").glob("*.json")):
        result = files.read_json(source)
        if not given.results and not any("device" in row for row in result.get("rows", [])):
            continue  # of the search, of training, or of whole networks
        for device in sorted({row["device"] for row in result["rows"]}):
            path = given.out / f"{source.stem}-{device}.svg"
            draw(result, device, path)
            print(path)


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
