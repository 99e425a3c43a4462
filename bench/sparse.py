"""Whole networks on lpk.sparsify beside what else runs them on a CPU, dense or sparse.

python -m bench.sparse [--networks resnet18 vgg16] [--densities 1 0.2 0.1 0.05 0.018] [--batches 128 1]
                       [--masks magnitude] [--size 224] [--peers ...] [--deepsparse PYTHON] [--results bench/results]

bench.networks says which networks there are, bench.sparse_subjects how they are pruned: the masks magnitude, uniform
and random, or a run directory, whose tickets are taken.

All contestants run in turns (A B C A B C ...) on the same inputs with the same threads. A turn is a pause, so that the
threads of the contestant before, which spin after a call, sleep again; calls that do not count; and one that does.
Every number is a median. The memory of lpk and of PyTorch is measured in processes of their own. The results file is
written after every network, density and batch: what an earlier run measured stays until it is measured again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import memory
from bench.networks import first_tensor
from bench.results import Row, describe, machine, significant, slug, three
from bench.sparse_peers import DENSE, NAMES, Contestant, about, contestants, missing
from bench.sparse_subjects import MASKS, Subject, check, subjects
from lpk.sparse import NotSupported
from lpk.tickets import files

TOLERANCE = 1e-3  # of the largest output, between two ways of computing the same
PAUSE = 0.1  # seconds; ONNX Runtime's threads were seen to spin for 36 ms, OpenMP's for 10 ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.sparse")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "vgg16"], help="as bench.networks has them")
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.2, 0.1, 0.05, 0.018])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1])
    parser.add_argument("--masks", nargs="+", default=["magnitude"], help=f"{', '.join(MASKS)}, or run directories")
    parser.add_argument("--size", type=int, help="of the images; default: 32 for lpk's own networks, 224 for others")
    parser.add_argument("--peers", nargs="*", choices=list(NAMES)[1:], help="default: those that can run here")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="an interpreter that has DeepSparse; default: this one")
    parser.add_argument("--weights", type=Path, default=Path("build/sparse"), help="where trained weights are kept")
    parser.add_argument("--results", type=Path, help="the directory that sparse-<machine>.json is written to")
    given = parser.parse_args()
    names = present(given.peers, given.deepsparse, parser)
    if not all(0 < density <= 1 for density in given.densities) or min(given.batches) < 1:
        parser.error(f"densities {given.densities} must be above 0 and up to 1, batches {given.batches} at least 1")
    try:
        check(given)
    except ValueError as error:
        parser.error(str(error))
    here = machine()
    path = given.results / f"sparse-{slug(here | {'gpu': None})}.json" if given.results else None
    if path:
        files.make_directory(path.parent)
    result = earlier(path) | {"machine": here}
    print(describe(here, "cpu"))
    for subject in subjects(given):
        for batch in given.batches:
            try:
                row = compare(subject, batch, names, given.deepsparse)
            except NotSupported as error:
                print(f"not measured: {subject.network['name']}, batch {batch}: {error}", flush=True)
                continue
            print(line(row), flush=True)
            rows = {identity(row): row for row in result["rows"]} | {identity(row): row}
            result["rows"] = [rows[key] for key in sorted(rows)]
            if path:
                files.write_bytes(path, (json.dumps(result, indent=1) + "\n").encode())
    print("\n" + table(result))
    if path:
        print(f"written: {path}")


def present(asked: Sequence[str] | None, deepsparse: str | None, parser: argparse.ArgumentParser) -> list[str]:
    """lpk and its peers: those asked for, or all that can run."""
    names = ["lpk"]
    for name in list(NAMES)[1:] if asked is None else asked:
        reason = missing(name, deepsparse)
        if reason is None:
            names.append(name)
        elif asked is None:
            print(f"not measured: {NAMES[name]}: {reason}")
        else:
            parser.error(f"--peers {name}: {reason}")
    return names


def earlier(path: Path | None) -> dict[str, Any]:
    return files.read_json(path) if path and path.is_file() else {"benchmark": "sparse", "rows": []}


def identity(row: Row) -> tuple[Any, ...]:
    """Which row takes the place of which, and their order."""
    return row["masks"], row["network"], tuple(row["shape"]), -row["batch"], -row["density"]


# --- what is measured ---


def compare(subject: Subject, batch: int, names: Sequence[str], deepsparse: str | None) -> Row:
    """One network at one density on one batch, by every contestant."""
    inputs = subject.inputs[torch.arange(batch) % len(subject.inputs)]
    with torch.inference_mode():
        reference = first_tensor(subject.model(inputs))
    with contestants(names, subject.model, inputs, deepsparse=deepsparse) as made:
        measured: dict[str, dict[str, float]] = {
            name: {"difference": significant(difference(contestant.output(), reference))}
            for name, contestant in made.items()
        }
        if wrong := [name for name, found in measured.items() if found["difference"] > TOLERANCE]:
            raise RuntimeError(f"{NAMES[wrong[0]]} does not compute what PyTorch computes: {measured[wrong[0]]}")
        peers = about(made)
        times = race(made, repetitions(batch))
    for name, seconds in times.items():
        low, _, high = statistics.quantiles(seconds, n=4)
        median = statistics.median(seconds)
        measured[name] |= {
            "milliseconds": significant(1e3 * median),
            "iqr": significant(1e3 * (high - low)),
            "to_lpk": significant(median / statistics.median(times["lpk"])),
        }
    return {
        "network": subject.network["name"],
        "shape": [*subject.network["shape"]],
        "masks": subject.masks,
        "density": significant(subject.density),
        "batch": batch,
        "date": datetime.date.today().isoformat(),
        "repetitions": repetitions(batch),
        "peers": peers,
        "contestants": measured,
        "memory": {
            name: memory.of(name, subject.model, subject.network, batch) for name in memory.NAMES if name in names
        },
    }


def repetitions(batch: int) -> int:
    return 9 if batch >= 16 else 31


def race(made: dict[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, contestant in made.items():
            time.sleep(PAUSE)
            times[name].append(contestant.seconds())
    return times


def difference(output: Tensor, reference: Tensor) -> float:
    """The largest, relative to the largest output."""
    return float((output - reference).abs().max() / reference.abs().max())


# --- what is shown ---

PRUNED = {
    "magnitude": "pruned by magnitude",
    "uniform": "every layer but the first pruned alike",
    "random": "pruned at random",
}


def extent(shape: Sequence[int]) -> str:
    """How large an input is: 32×32 pixels, or 128 tokens."""
    return "×".join(str(pixels) for pixels in shape[1:]) if len(shape) == 3 else f"{shape[0]} tokens"


def fastest(row: Row) -> str | None:
    """The contestant that is fastest of those that compute with the zeros, if one was measured."""
    dense = [name for name in DENSE if name in row["contestants"]]
    return min(dense, key=lambda name: row["contestants"][name]["milliseconds"], default=None)


def line(row: Row) -> str:
    times = ", ".join(f"{NAMES[name]} {found['milliseconds']:.4g}" for name, found in row["contestants"].items())
    text = f"{row['network']}, {extent(row['shape'])}, {row['masks']}, {row['density']:.1%}, batch {row['batch']}, ms: "
    text += times
    if dense := fastest(row):
        text += f"; {row['contestants'][dense]['to_lpk']:.2f} times as fast as {NAMES[dense]}"
    return text


def table(result: dict[str, Any]) -> str:
    """One Markdown table for each network and batch."""
    text = []
    for (masks, name, shape, batch), group in itertools.groupby(
        result["rows"], key=lambda row: (row["masks"], row["network"], row["shape"], row["batch"])
    ):
        rows = list(group)
        columns = [peer for peer in NAMES if any(peer in row["contestants"] for row in rows)]
        words = PRUNED.get(masks, f"tickets of {masks}")
        ratios = ["over the fastest dense path"]
        if "deepsparse" in columns:
            ratios.append("over DeepSparse")
        ahead = [*(NAMES[peer] for peer in columns), *ratios, "weights, MiB", "peak, MiB"]
        text += [
            f"{name}, {extent(shape)}, batch {batch}, {words}: milliseconds, how many times as fast lpk is, and the "
            "memory of lpk / PyTorch.",
            "",
            f"| density | {' | '.join(ahead)} |",
            "|---:" * (1 + len(ahead)) + "|",
            *(f"| {row['density']:.1%} | {' | '.join(cells(row, columns))} |" for row in rows),
            "",
        ]
        greatest = max(row["contestants"]["lpk"]["difference"] for row in rows)
        imports = three(max(row["memory"]["lpk"]["imports"] for row in rows))
        text += [
            f"lpk's outputs differ from PyTorch's by at most {greatest:.1g} of the largest output. "
            f"Of each peak, {imports} MiB are imports.",
            "",
        ]
    return "\n".join(text[:-1])


def cells(row: Row, columns: Sequence[str]) -> Iterator[str]:
    """What stands in a row of the table behind the density."""
    found = row["contestants"]
    for name in columns:
        yield three(found[name]["milliseconds"]) if name in found else ""
    for peer in [fastest(row), *(["deepsparse"] if "deepsparse" in columns else [])]:
        yield three(found[peer]["to_lpk"]) if peer in found else ""
    for kind in ("weights", "peak"):
        yield " / ".join(three(found[kind]) for found in row["memory"].values())


if __name__ == "__main__":
    main()
