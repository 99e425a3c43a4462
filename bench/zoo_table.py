"""bench.zoo's rows as a table, and in a few words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import inf, isnan
from typing import Any

from bench.results import Row, three
from bench.sparse import extent
from bench.zoo_networks import TOO_LARGE

TOLERANCE = 1e-4  # of the largest output; more is right where lpk is as near to float64 as PyTorch
AS_NEAR = 2.0  # times PyTorch's distance: which of the two rounds better is chance
SLOW = 0.95  # of PyTorch's speed


def wrong(found: Row) -> bool:
    """Whether what lpk returned for a batch is neither PyTorch's nor as near to float64 as PyTorch's."""
    if "difference" not in found or found["difference"] <= TOLERANCE:
        return False
    own, eager = found["float64"]
    return not own <= AS_NEAR * eager


def ran(row: Row) -> list[Row]:
    """What was found for the batches that lpk computed."""
    return [found for found in row["batches"].values() if "how" in found]


def way(row: Row) -> str:
    """How lpk ran the network: "whole", "in part", "in PyTorch", "refused" or "error"."""
    if "failed" in row or any("error" in found for found in row["batches"].values()):
        return "error"
    if any("refused" in found for found in row["batches"].values()):
        return "refused"
    if any(not found["how"] for found in ran(row)):
        return "in PyTorch"
    return "in part" if any(found["how"]["in_pytorch"] for found in ran(row)) else "whole"


def way_in_words(row: Row) -> str:
    said = [found.get("refused") or found.get("error") for found in row["batches"].values()]
    problem = row.get("failed") or next(filter(None, said), None)
    if problem is not None:
<<<<<<< HEAD
        return f"{way(row)}: {problem}"
=======
        return f"{way(row)}: {problem.partition('; with fallback=')[0]}"
>>>>>>> 248087f129c0854a4198e5f60b2248eacfbf8b23
    if way(row) == "in part":
        most = max((found["how"] for found in ran(row)), key=lambda how: how["in_pytorch"])
        return f"{most['in_pytorch']} of {most['steps']} steps in PyTorch"
    return way(row)


def difference_in_words(row: Row) -> str:
    """The largest of all batches, and where that tells little both distances to float64."""
    if not ran(row):
        return ""
    most = max(ran(row), key=lambda found: inf if isnan(found["difference"]) else found["difference"])
    text = f"{most['difference']:.0e}"
    if "float64" in most:
        own, eager = most["float64"]
        text += f", to float64 {own:.0e}, PyTorch's {eager:.0e}"
    return text + (", wrong" if any(map(wrong, ran(row))) else "")


def line(row: Row) -> str:
    """What is printed when a network was measured."""
    if "unmade" in row:
        return f"{row['network']}: not compared: {row['unmade']}"
    text = f"{row['network']}: {way_in_words(row)}"
    if ran(row):
        text += f"; difference {difference_in_words(row)}"
    for batch, found in row["batches"].items():
        if "ratio" in found:
            text += f"; batch {batch}: {three(found['ratio'])} times as fast as PyTorch"
    return text


def table(result: dict[str, Any]) -> str:
    """A summary for each library and density, and one table for each density."""
    parts = []
    for density in sorted({row["density"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["density"] == density and "unmade" not in row]
        batches = sorted({int(batch) for row in rows for batch in row["batches"]})
        for library in sorted({library_of(row) for row in result["rows"]}):
            alike = [row for row in result["rows"] if row["density"] == density and library_of(row) == library]
            parts += [summary(library, alike, batches), ""]
        heads = ["network", "input", f"on lpk, {density:.0%} of each layer's weights", "difference"]
        heads += [f"batch {batch}: times PyTorch's speed" for batch in batches]
        parts += [f"| {' | '.join(heads)} |", "|---|---|---|---|" + "---:|" * len(batches)]
        parts += [f"| {' | '.join(cells(row, batches))} |" for row in rows] + [""]
    return "\n".join(parts[:-1])


def cells(row: Row, batches: Sequence[int]) -> list[str]:
    ratios = [row["batches"].get(str(batch), {}).get("ratio") for batch in batches]
    size = extent(row["shape"]) if "shape" in row else ""
    told = [row["network"], size, way_in_words(row).replace("|", "\\|"), difference_in_words(row)]
    return told + ["" if ratio is None else three(ratio) for ratio in ratios]


def library_of(row: Row) -> str:
    library, slash, _ = row["network"].partition("/")
    return library if slash else "others"


def summary(library: str, rows: Sequence[Row], batches: Sequence[int]) -> str:
    """How many networks run whole, are wrong, fail or are slow."""
    unmade = [row["network"] for row in rows if "unmade" in row]
    rows = [row for row in rows if "unmade" not in row]
    ways = [way(row) for row in rows]
    text = (
        f"{library}: of {len(rows)} networks {ways.count('whole')} run whole on lpk, {ways.count('in part')} in part, "
    )
    text += f"{ways.count('in PyTorch')} in PyTorch; {ways.count('refused')} are refused. "
    text += f"{sum(any(map(wrong, ran(row))) for row in rows)} wrong, {ways.count('error')} unclear errors. "
    for batch in batches:
        found = {row["network"]: row["batches"].get(str(batch), {}).get("ratio") for row in rows}
        ratios = {name: ratio for name, ratio in found.items() if ratio is not None}
        if ratios:
            last = min(ratios, key=lambda name: ratios[name])
            text += (
                f"Batch {batch}: {sum(ratio < SLOW for ratio in ratios.values())} of {len(ratios)} slower than {SLOW} "
                f"of PyTorch's speed, the slowest {three(ratios[last])} ({last}), the median "
                f"{three(statistics.median(ratios.values()))}. "
            )
    if unmade:
        text += f"Not compared: {', '.join(unmade)}. "
    if library == "torchvision":
        text += f"Left out, more than 20 G multiply-adds an image or 300 M weights: {', '.join(TOO_LARGE)}."
    return text.rstrip()
