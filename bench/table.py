"""Prints what was measured, bench/results/*.json, as the tables of README.md and docs/performance.md; and what
experiments found, docs/results/*.json, as those of docs/results.md.

python -m bench.table results.json ... [--update README.md]

The tables of the kernels stand between <!-- bench --> and <!-- /bench -->, those of the search between
<!-- bench: search --> and <!-- /bench: search -->, on a GPU likewise between bench: search on a GPU, those of training
between bench: training on a GPU, those of whole networks between bench: sparse, those of torchvision's and timm's
networks between bench: zoo, and an experiment's between its name.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench import loader, search_cpu, search_gpu, search_gpu_words, sparse, train, zoo, zoo_table
from bench.cases import LARGE, RESNET18
from bench.results import Row, describe, three
from lpk.tickets import files

NAMES = {
    "lpk.triton": "lpk, its Triton kernels",
    "lpk.packed": "lpk, of packed vectors",
    "torch.topk": "PyTorch, `abs` and `torch.topk`",
    "torch.kthvalue": "PyTorch, `torch.kthvalue`",
    "numpy.partition": "NumPy, `numpy.partition`",
    "cupy.partition": "CuPy, `cupy.partition`",
    "cub.topk": "CUB, `DeviceTopK`",
    "flashinfer.top_k": "FlashInfer, `top_k`",
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
        f"Per coefficient, masked output written, {size}, 20% kept, 11 coefficients in one call:",
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


def experiment(result: Row) -> str:
    """The tables and the summary of an experiment that `lpk run` wrote."""
    lines = []
    for shown in result["tables"]:
        best = {tuple(cell) for cell in shown["best"]}
        lines += [f"{shown['title']}:", ""] if shown["title"] else []
        lines += ["| " + " | ".join(shown["heads"]) + " |", "|---|" + "---:|" * (len(shown["heads"]) - 1)]
        for i, line in enumerate(shown["lines"]):
            cells = (f"**{cell}**" if (i, j) in best else cell for j, cell in enumerate(line))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, result["summary"], ""])


def tables_of(result: Row) -> tuple[str, list[str]]:
    """What the markers are called that the tables of one file stand between, and the tables."""
    if "experiment" in result:
        return result["experiment"], [experiment(result)]
    if result.get("benchmark") == "train":
        kind, text = "bench: training on a GPU", train.table(result)
        measured = "python -m bench.train", "cuda", train.PARTS
    elif result.get("benchmark") == "loader":
        kind, text, measured = "bench: loader", loader.table(result), ("python -m bench.loader", "cpu", loader.PARTS)
    elif result.get("benchmark") == "search-gpu":
        kind, text = "bench: search on a GPU", search_gpu_words.table(result)
        measured = f"python -m bench.search --preset bench/{result['preset']['name']}.toml", "cuda", search_gpu.PARTS
    elif "preset" in result:
        kind, text, measured = "bench: search", search_cpu.table(result), ("python -m bench.search", "cpu", ["rows"])
    elif result.get("benchmark") == "sparse":
        kind, text, measured = "bench: sparse", sparse.table(result), ("python -m bench.sparse", "cpu", ["rows"])
    elif result.get("benchmark") == "zoo":
        kind, text, measured = "bench: zoo", zoo_table.table(result), ("python -m bench.zoo", "cpu", ["rows"])
    else:
        return "bench", [found for device in ("cpu", "cuda") if (found := table(result, device))]
    command, device, parts = measured
    date = max(row["date"] for part in parts for row in result[part])
    return kind, [f"{text}\n\nMeasured by `{command}` on {describe(result['machine'], device)}, {date}.\n"]


def updated(text: str, marker: str, tables: list[str]) -> str:
    """The text with these tables between its markers. Raises ValueError unless there is one pair of them."""
    pair = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    pattern = re.compile(f"({re.escape(pair[0])}\n).*?({re.escape(pair[1])})", re.DOTALL)
    text, count = pattern.subn(lambda found: found[1] + "\n" + "\n".join(tables) + "\n" + found[2], text)
    if count != 1:
        raise ValueError(f"{count} pairs of {pair[0]} and {pair[1]}; one is needed")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.table")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument(
        "--update", type=Path, metavar="README.md", help="replace what stands between its bench markers"
    )
    given = parser.parse_args()
    tables: dict[str, list[str]] = {}
    for path in given.results:
        marker, texts = tables_of(zoo.read(path) if path.suffix == ".jsonl" else files.read_json(path))
        tables.setdefault(marker, []).extend(texts)
    if not all(tables.values()):
        sys.exit("the main case of interpolate_prune was not measured in these files")
    print("\n".join(text for texts in tables.values() for text in texts), end="")
    if given.update:
        page = given.update.read_text()
        for marker, texts in tables.items():
            try:
                page = updated(page, marker, texts)
            except ValueError as error:
                sys.exit(f"{given.update} has {error}")
        files.write_bytes(given.update, page.encode())


if __name__ == "__main__":
    main()
