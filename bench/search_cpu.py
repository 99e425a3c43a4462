"""bench.search on a CPU: lpk's search beside the paper's procedure in plain PyTorch, one after the other.

For a dense, a medium and the sparsest target, each in this process, with the same threads:

reference   tests/pooling/reference_search.py: torch.topk, update_bn over the whole training set through a DataLoader
            (a TensorDataset in memory: the cheapest there is), validation in batches of 128
lpk         lpk.pool as a user calls it
exhaustive  lpk.pool(search="exhaustive"): what `lpk` must agree with, and the samples it saves
torch       lpk.pool(backend="torch"): what the engine is worth
eager       the reference on lpk's calibration samples, keeping exactly `keep` weights, beside lpk's exhaustive search

Then all targets in one call, and the peak memory of a pool beside that of evaluating a single network.
"""

from __future__ import annotations

import datetime
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import lpk
from bench.results_file import ResultsFile, identity
from lpk.pooling import samples
from lpk.pooling.accuracy import correct_predictions
from lpk.run import Run
from tests.pooling import reference_search

PARTS = ("rows", "all_targets", "peak_memory")
BATCH_SIZE = 128  # the reference's
REPETITIONS = 3  # of lpk's pool, whose median counts; the reference takes minutes and runs once


def measure(
    run: Run,
    file: ResultsFile,
    *,
    targets: Sequence[int],
    parts: Sequence[str] = PARTS,
    candidates: int | None = None,
    keep_reference: bool = False,
) -> None:
    """Measures what is asked for of one run, prints it, and keeps it in the file, row by row.

    keep_reference: whether an earlier measurement of the reference counts. Peak memory is `peaks_of`'s.
    """
    for target in targets if "rows" in parts else []:
        known = [row["reference"] for row in file.result["rows"] if identity(row)[:2] == (run.seed, target)]
        row = compare(run, target, candidates, known[0] if known and keep_reference else None)
        print(line(row), flush=True)
        file.keep("rows", row)
    if "all_targets" in parts:
        file.keep("all_targets", all_targets(run, candidates))


def compare(run: Run, target: int, candidates: int | None, reference: dict[str, Any] | None) -> dict[str, Any]:
    """One target by every procedure; by the reference only where nothing is known of it yet."""
    tickets = run.tickets()
    model = plain(run.model())
    train, validation, calibration = run.data.train.tensors(), run.data.validation.tensors(), run.calibration()
    loaders = [DataLoader(TensorDataset(*split), batch_size=BATCH_SIZE) for split in (validation, train)]

    def timed(call: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        return call(), time.perf_counter() - began

    def pool(search: str, backend: str = "auto") -> tuple[lpk.Pooled, float]:
        options = {"validation": run.data.validation.loader(256), "calibration": calibration.loader(256)}
        return timed(
            lambda: lpk.pool(
                tickets,
                target,
                model=run.model(),
                search=search,
                backend=backend,
                candidates=candidates,
                progress=False,
                **options,
            )
        )

    several = [pool("bounded") for _ in range(REPETITIONS)]
    bounded, lpk_seconds = several[0][0], statistics.median(seconds for _, seconds in several)
    torch_seconds = statistics.median(pool("bounded", "torch")[1] for _ in range(REPETITIONS))
    if reference is None:
        slow, seconds = timed(
            lambda: reference_search.pool(tickets, target, model, *loaders, lpk.COEFFICIENTS, candidates=candidates)
        )
        reference = {
            "date": datetime.date.today().isoformat(),
            "seconds": seconds,
            "test": test_accuracy(run, slow.state_dict),
            "accepted": sum(step.accepted for step in slow.steps),
        }
    exhaustive, exhaustive_seconds = pool("exhaustive")
    return {
        "seed": run.seed,
        "target": target,
        "density": tickets[target].density,
        "validation_samples": len(validation[0]),
        "training_samples": len(train[0]),
        "reference": reference,
        "lpk": {
            "seconds": lpk_seconds,
            "test": test_accuracy(run, bounded.state_dict),
            "accepted": sum(step.accepted for step in bounded.steps),
            "forward_samples": bounded.forward_samples,
            "validation_samples": bounded.validation_samples,
            "settings": dict(bounded.settings),
        },
        "torch": {"seconds": torch_seconds},
        "ticket": {"test": test_accuracy(run, tickets[target].state_dict)},
        "exhaustive": {
            "seconds": exhaustive_seconds,
            "forward_samples": exhaustive.forward_samples,
            "validation_samples": exhaustive.validation_samples,
            "same_as_lpk": same(exhaustive, bounded),
        },
        "eager": agreement(run, tickets, target, model, candidates),
    }


def agreement(run: Run, tickets: lpk.Tickets, target: int, model: nn.Module, candidates: int | None) -> dict[str, Any]:
    """Plain eager PyTorch under the paper's rules and lpk's exhaustive search, both on all calibration samples."""
    batch_size = samples.BATCH_SIZE
    validation, calibration = run.data.validation.tensors(), run.calibration().tensors()
    loaders = [
        DataLoader(TensorDataset(*validation), batch_size=batch_size),
        DataLoader(TensorDataset(*calibration), batch_size=batch_size, drop_last=True),  # lpk leaves a shorter one out
    ]

    def pool(offered: int | None) -> lpk.Pooled:
        return lpk.pool(
            tickets,
            target,
            model=run.model(),
            validation=validation,
            calibration=calibration,
            search="exhaustive",
            tolerance=0,
            candidates=offered,
            progress=False,
        )

    def eager(best: dict[str, Tensor] | None, skip: int) -> list[reference_search.ReferenceStep]:
        options = {"candidates": candidates, "prune": reference_search.exact_prune, "best": best, "skip": skip}
        return reference_search.pool(tickets, target, model, *loaders, lpk.COEFFICIENTS, **options).steps

    ours, differing = pool(candidates).steps, []
    theirs = eager(None, 0)
    for i, own in enumerate(ours):
        step = {
            "candidate": own.candidate,
            "coefficients": [theirs[i].coefficient, own.coefficient],
            "counts": [max(theirs[i].counts), round(own.accuracy * len(validation[0]))],
            "accepted": [theirs[i].accepted, own.accepted],
        }
        if any(a != b for a, b in (step["coefficients"], step["counts"], step["accepted"])):
            differing.append(step)
            # What comes next would only show that the networks differ: go on from lpk's.
            theirs[i + 1 :] = eager(pool(i + 1).state_dict, i + 1)
    return {"steps": len(ours), "differing": differing}


def same(a: lpk.Pooled, b: lpk.Pooled) -> bool:
    """Whether two searches accepted the same steps with the same counts, and found the same network."""
    states = zip(a.state_dict.values(), b.state_dict.values(), strict=True)
    steps = [[step for step in pooled.steps if step.accepted] for pooled in (a, b)]
    return steps[0] == steps[1] and all(torch.equal(x, y) for x, y in states)


def all_targets(run: Run, candidates: int | None) -> dict[str, Any]:
    began = time.perf_counter()
    made = lpk.pool(
        run.tickets(),
        model=run.model(),
        validation=run.data.validation.loader(256),
        calibration=run.calibration().loader(256),
        candidates=candidates,
        progress=False,
    )
    return {"seed": run.seed, "targets": len(made), "seconds": time.perf_counter() - began}


def peaks_of(run: Path, target: int) -> dict[str, Any]:
    """Peak resident memory in MiB: a process of its own each."""
    found = {}
    for kind in ("single", "pool"):
        command = [sys.executable, "-m", "bench.search", "--runs", str(run), "--peak", kind, "--targets", str(target)]
        found[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def peak(path: Path, kind: str, target: int) -> dict[str, float]:
    """What this process needs at most to evaluate one network, or to make a pool, the tickets being held by both."""
    with Run.open(path, device="cpu") as run:
        tickets, model = run.tickets(), run.model()
        validation, calibration = run.data.validation.tensors(), run.calibration().tensors()
        Path("/proc/self/clear_refs").write_text("5")  # importing PyTorch took more for a moment: begin anew
        before = resident("VmRSS")
        if kind == "single":
            plain_model = plain(model)
            plain_model.load_state_dict(tickets[target].state_dict)
            update_bn(DataLoader(TensorDataset(*calibration), batch_size=BATCH_SIZE), plain_model)
            correct_predictions(plain_model, validation, batch_size=BATCH_SIZE)
        else:
            lpk.pool(tickets, target, model=model, validation=validation, calibration=calibration, progress=False)
        return {"before": before, "peak": resident("VmHWM")}


def resident(which: str) -> float:
    """Resident memory in MiB, now or at most: Linux's VmRSS or VmHWM."""
    found = re.search(rf"^{which}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def plain(model: nn.Module) -> nn.Module:
    """The model in PyTorch's default layout."""
    return model.to(memory_format=torch.contiguous_format)


def test_accuracy(run: Run, state: dict[str, Tensor]) -> float:
    model = run.model()
    model.load_state_dict(state)
    return float(correct_predictions(model, run.data.test.loader(256)).double().mean())


def line(row: dict[str, Any]) -> str:
    ours, theirs = row["lpk"], row["reference"]
    return (
        f"seed {row['seed']}, target {row['target']} ({row['density']:.1%}): "
        f"reference {theirs['seconds']:.1f} s, lpk {ours['seconds']:.2f} s, "
        f"{theirs['seconds'] / ours['seconds']:.0f} times; test {theirs['test']:.2%} and {ours['test']:.2%}"
    )


def table(result: dict[str, Any]) -> str:
    """The measurement as a Markdown table, with what else was asked in sentences."""
    rows = result["rows"]
    text = [
        "| seed | target | density | reference, s | lpk, s | times | test: ticket | reference | lpk | validated |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours, theirs = row["lpk"], row["reference"]
        share = ours["validation_samples"] / row["exhaustive"]["validation_samples"]
        text.append(
            f"| {row['seed']} | {row['target']} | {row['density']:.1%} | {theirs['seconds']:.0f} | "
            f"{ours['seconds']:.2f} | {theirs['seconds'] / ours['seconds']:.0f} | {row['ticket']['test']:.2%} | "
            f"{theirs['test']:.2%} | {ours['test']:.2%} | {share:.0%} |"
        )
    difference = statistics.mean(row["lpk"]["test"] - row["reference"]["test"] for row in rows)
    slower = [f"{row['torch']['seconds'] / row['lpk']['seconds']:.1f}" for row in rows]
    agreeing = sum(row["exhaustive"]["same_as_lpk"] for row in rows)
    steps = sum(row["eager"]["steps"] for row in rows)
    differing = [step for row in rows for step in row["eager"]["differing"]]
    text += [
        "",
        f"Mean test accuracy of lpk's pools minus the reference's: {100 * difference:+.3f} points.",
        'The same search on PyTorch\'s convolutions (`backend="torch"`) takes, row by row, '
        f"{', '.join(slower)} times as long.",
        f"Bounded and exhaustive search: the same accepted steps, counts and network in {agreeing} of {len(rows)}.",
        f"Exhaustive search and eager PyTorch on the same calibration samples: {steps - len(differing)} of {steps} "
        "steps alike in coefficient, count and acceptance"
        + "".join(
            f"; candidate {s['candidate']}: counts {s['counts']}, coefficients {s['coefficients']}, "
            f"accepted {s['accepted']}"
            for s in differing
        )
        + ".",
    ]
    for made in result["all_targets"]:
        single = [row["lpk"]["seconds"] for row in rows if row["seed"] == made["seed"]]
        text.append(
            f"All {made['targets']} targets, seed {made['seed']}: {made['seconds']:.1f} s, "
            f"{made['seconds'] / statistics.mean(single):.1f} times one target's (mean of those above)."
        )
    for found in result["peak_memory"]:
        single, pool = found["single"], found["pool"]
        text.append(
            f"Peak memory of a pool, seed {found['seed']}: {pool['peak']:.0f} MiB; of evaluating one network, the "
            f"tickets held: {single['peak']:.0f} MiB ({pool['peak'] / single['peak']:.2f} times). Before either: "
            f"{single['before']:.0f} MiB."
        )
    return "\n".join(text)
