"""Prints what was measured, bench/results/*.json, as the tables of README.md and docs/performance.md.

python -m bench.table results.json ... [--update README.md]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench import search
from bench.cases import LARGE, RESNET18
from bench.results import Row, describe
from lpk import files

MARKERS = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)
NAMES = {
    "lpk.packed": "lpk, of packed vectors",
    "torch.topk": "PyTorch, `abs` and `torch.topk`",
    "torch.kthvalue": "PyTorch, `torch.kthvalue`",
    "numpy.partition": "NumPy, `numpy.partition`",
    "cupy.partition": "CuPy, `cupy.partition`",
}


def main_case(result: Row, operation: str, device: str, coefficients: int) -> dict[str, Row]:
    """What was measured of an operation in the main case, by contestant, the fastest first."""
    usual = {
        "operation": operation,
        "device": device,
        "n": LARGE if device == "cuda" else RESNET18,
        "dtype": "float32",
        "density": 0.2,
        "coefficients": coefficients,
        "distribution": "normal",
        "threads": result["machine"]["threads"] if device == "cpu" else None,
    }
    rows = [row for row in result["rows"] if row | usual == row]
    return {row["peer"]: row for row in sorted(rows, key=lambda row: row["milliseconds"])}


def table(result: Row, device: str) -> str | None:
    """The search step beside its peers and the floor, then the mask; None where lpk was not measured."""
    steps = main_case(result, "interpolate_prune", device, 11)
    if "lpk" not in steps:
        return None
    lpk = steps.pop("lpk")
    steps.pop("copy", None)
    size = "2^26 float32 weights" if lpk["n"] == LARGE else f"{lpk['n']:,} float32 weights (ResNet-18)"
    lines = [
        f"Per coefficient, masked output written, {size}, 20% kept, 11 coefficients sharing one sweep:",
        "",
        "| | milliseconds | times lpk's |",
        "|---|---:|---:|",
        f"| lpk | {three(lpk['milliseconds'])} | 1 |",
        *(f"| {NAMES[peer]} | {three(row['milliseconds'])} | {three(row['to_lpk'])} |" for peer, row in steps.items()),
    ]
    if lpk["to_floor"]:
        floor = three(lpk["milliseconds"] / lpk["to_floor"])
        share = three(1 / lpk["to_floor"])
        lines.append(f"| the limit: a plain copy of the bytes that must move | {floor} | {share} |")
    masks = main_case(result, "magnitude_mask", device, 1)
    if {"lpk", "global_unstructured"} <= masks.keys():
        own, peer = masks["lpk"], masks["global_unstructured"]
        lines += [
            "",
            "`lpk.ops.magnitude_mask` makes the mask of `torch.nn.utils.prune.global_unstructured` "
            f"{three(peer['to_lpk'])} times as fast ({three(own['milliseconds'])} ms against "
            f"{three(peer['milliseconds'])} ms).",
        ]
    measured = f"Medians of `make bench` on {describe(result['machine'], device)}, {result['date']}."
    lines += ["", measured + " Shared machines are noisy: read the ratios."]
    return "\n".join(lines) + "\n"


def tables_of(result: Row) -> list[str]:
    """The tables of one file: of the kernels on each device, or of the search."""
    if "preset" in result:
        date = max(row["date"] for row in result["rows"])
        measured = f"Measured by `python -m bench.search` on {describe(result['machine'], 'cpu')}, {date}."
        return [f"{search.table(result)}\n\n{measured}\n"]
    return [text for device in ("cpu", "cuda") if (text := table(result, device))]


def three(number: float) -> str:
    """Three digits, without an exponent: 0.0123, 1.23, 12.3, 123, 1,230."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}".rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.table")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument(
        "--update", type=Path, metavar="README.md", help="replace what stands between its bench markers"
    )
    given = parser.parse_args()
    measured = [files.read_json(path) for path in given.results]
    tables = [text for result in measured for text in tables_of(result)]
    if not tables:
        sys.exit("the main case of interpolate_prune was not measured in these files")
    print("\n".join(tables), end="")
    if given.update:
        before = given.update.read_text()
        after, count = MARKERS.subn(lambda found: found[1] + "\n" + "\n".join(tables) + "\n" + found[2], before)
        if count != 1:
            sys.exit(f"{given.update} has {count} pairs of <!-- bench --> and <!-- /bench -->; one is needed")
        files.write_bytes(given.update, after.encode())


if __name__ == "__main__":
    main()
