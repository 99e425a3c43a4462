"""torchvision's classifiers and 60 architectures of timm on lpk.sparsify beside eager PyTorch.

python -m bench.zoo [--library torchvision timm] [--networks ...] [--density 0.1] [--batches 1 16]
                    [--results bench/results] [--again] [--limit 900]

Every prunable layer but the one that reads the images has the same density (the masks "uniform" of bench.sparse).
PyTorch computes the same pruned network, channels last. Each network has a process of its own, with limits of time and
memory, so that a crash or a hang is a row, too. A row is kept as soon as it is there, in zoo-<machine>.jsonl, and a run
that was killed goes on where it was. --again measures what is there once more.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

import lpk
from bench import networks, zoo_networks, zoo_table
from bench.results import Row, describe, machine, significant, slug
from bench.sparse import difference
from bench.sparse_subjects import Subject, uniform
from lpk.sparse import NotSupported, Sparse
from lpk.tickets import files

SECONDS = 2.0  # for the turns of one batch
TURNS = 3, 15  # at least and at most
WARM = 0.1  # seconds of calls, of which a turn counts the last: memory, caches and threads are its own by then
MEMORY = 20 << 30  # bytes


def how(fast: Sparse) -> dict[str, int]:
    """How the last call ran: how many steps its plan has, and how many of those PyTorch runs; {} where PyTorch runs the
    whole model."""
    network = [*fast._networks.values()][-1]
    return {} if network is None else {"steps": len(network.plan.steps), "in_pytorch": len(network.plan.in_pytorch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.zoo")
    parser.add_argument("--library", nargs="+", choices=zoo_networks.LIBRARIES, default=[*zoo_networks.LIBRARIES])
    parser.add_argument("--networks", nargs="+", help="these alone, as bench.networks has them")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--results", type=Path, help="the directory that zoo-<machine>.jsonl is written to")
    parser.add_argument("--again", action="store_true", help="measure also what the results file has")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each network")
    parser.add_argument("--here", metavar="NETWORK", help="only this one, in this process: prints its row")
    given = parser.parse_args()
    if not 0 < given.density <= 1 or min(given.batches) < 1:
        parser.error(f"density {given.density} must be above 0 and up to 1, batches {given.batches} at least 1")
    if given.here:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for row in measured(given.here, given.density, given.batches):
            print(json.dumps(row), flush=True)
        return
    try:
        chosen = [networks.full_name(name) for name in given.networks or []]
    except ValueError as error:
        parser.error(str(error))
    wanted = chosen or [name for library in given.library for name in zoo_networks.names(library)]
    here = machine()
    path = given.results / f"zoo-{slug(here | {'gpu': None})}.jsonl" if given.results else None
    result = run(wanted, given, here, path)
    print("\n" + zoo_table.table(result))
    if path:
        print(f"written: {path}")


def run(wanted: Sequence[str], given: argparse.Namespace, here: Row, path: Path | None) -> Row:
    """Measures what is not there yet; the rows are kept after each network."""
    result: Row = {"benchmark": "zoo", "rows": read(path)["rows"] if path and path.is_file() else [], "machine": here}
    print(describe(here, "cpu"))
    for name in wanted:
        known = {identity(row): row for row in result["rows"]}
        there = known.get((name, given.density), {"asked": []})["asked"]
        if given.again or not set(given.batches) <= set(there):
            row = apart(name, given.density, given.batches, given.limit)
            print(zoo_table.line(row), flush=True)
            result["rows"] = [*(known | {identity(row): row}).values()]
            if path:
                write(path, result)
    return result


def identity(row: Row) -> tuple[str, float]:
    """Which row takes the place of which."""
    return row["network"], row["density"]


def read(path: Path) -> Row:
    """The file as bench.table takes it: its first line says what the rows, the others, are of."""
    head, *rows = map(json.loads, path.read_text().splitlines())
    return {**head, "rows": rows}


def write(path: Path, result: Row) -> None:
    head = {key: value for key, value in result.items() if key != "rows"}
    files.make_directory(path.parent)
    files.write_bytes(path, "".join(f"{json.dumps(line)}\n" for line in (head, *result["rows"])).encode())


def apart(name: str, density: float, batches: Sequence[int], limit: float) -> Row:
    """The row of a network that a process of its own measures; "failed" says how that came to no good end."""
    command = [sys.executable, "-m", "bench.zoo", "--here", name, "--density", str(density), "--batches"]
    command += map(str, batches)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    failed = None
    try:
        printed, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, said = process.communicate()
        failed = f"not done after {limit:.0f} s"
    if failed is None and process.returncode < 0:
        failed = f"ended by {signal.Signals(-process.returncode).name}"
    elif failed is None and process.returncode > 0:
        failed = (said.strip().splitlines() or [f"status {process.returncode}"])[-1]
    row: Row = beginning(name, density, batches)
    for line in printed.splitlines():  # each says more than the one before; others' prints are no rows
        if line.startswith('{"network": '):
            row = json.loads(line)
    return row if failed is None else row | {"failed": failed}


# --- in the network's own process ---


def beginning(name: str, density: float, batches: Sequence[int]) -> Row:
    today = datetime.date.today().isoformat()
    return {"network": name, "density": density, "asked": [*batches], "date": today, "batches": {}}


def measured(name: str, density: float, batches: Sequence[int]) -> Iterator[Row]:
    """Yields the row after each batch."""
    row = beginning(name, density, batches)
    try:
        subject = uniform(networks.described(name, None), density)
    except Exception as error:  # whatever a library's network raises; it is none of lpk's
        yield row | {"unmade": words(error)}
        return
    row["shape"] = [*subject.network["shape"]]
    eager = copy.deepcopy(subject.model).to(memory_format=torch.channels_last)
    try:
        fast = lpk.sparsify(subject.model)
    except Exception as error:  # it is to be told
        yield row | {"batches": {str(batch): refusal(error) for batch in batches}}
        return
    for batch in batches:
        row["batches"][str(batch)] = beside(fast, eager, subject, batch)
        yield row


@torch.inference_mode()
def beside(fast: Sparse, eager: nn.Module, subject: Subject, batch: int) -> Row:
    """Both on one batch: how lpk ran, whether it is right, and the times."""
    inputs = subject.inputs[torch.arange(batch) % len(subject.inputs)]
    last = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
    reference = networks.first_tensor(eager(last))
    try:
        output = networks.first_tensor(fast(inputs))
        found: Row = {"how": how(fast)}
    except Exception as error:  # it is to be told
        return refusal(error)
    found["difference"] = significant(difference(output, reference))
    if not found["difference"] <= zoo_table.TOLERANCE:
        exact = networks.first_tensor(copy.deepcopy(subject.model).double()(inputs.double()))
        found["float64"] = [significant(difference(x.double(), exact)) for x in (output, reference)]
    times = turns({"lpk": lambda: fast(inputs), "eager": lambda: eager(last)})
    found["milliseconds"] = {who: significant(1e3 * statistics.median(of)) for who, of in times.items()}
    found["ratio"] = significant(found["milliseconds"]["eager"] / found["milliseconds"]["lpk"])
    found["turns"] = len(times["lpk"])
    return found


def refusal(error: Exception) -> Row:
    """A refusal is lpk's own word; any other error is one that it should have foreseen."""
    return {"refused" if isinstance(error, NotSupported) else "error": words(error)}


def words(error: Exception) -> str:
    """The first line, without the paths of this machine."""
    text = re.sub(r"[^\s(]*/site-packages/", "", str(error).strip().partition("\n")[0])
    return text if isinstance(error, NotSupported) else f"{type(error).__name__}: {text}"


def turns(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of a call of each, turn about. Both use one pool of threads: there is none to wait for."""
    times: dict[str, list[float]] = {who: [] for who in calls}
    began = time.perf_counter()
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and time.perf_counter() - began > SECONDS:
            break
        for who, call in calls.items():
            times[who].append(warm_seconds(call))
    return times


def warm_seconds(call: Callable[[], object]) -> float:
    """The time of the last call of those that take WARM seconds together: of the only one, if it takes longer."""
    until = time.perf_counter() + WARM
    while True:
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        if ended > until:
            return ended - began


if __name__ == "__main__":
    main()
