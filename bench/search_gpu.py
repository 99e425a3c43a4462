"""bench.search on a GPU: what a search takes, whether it finds what the eager pass finds, and how busy the card is.

python -m bench.search --preset bench/h100.toml [--runs RUNS] [--rounds 4] [--targets 0 3 7] [--parts rows profile]
                       [--autocast float32 bfloat16] [--reference-networks 3] [--results bench/results]

Samples lie on the card for every contestant. What matters most is measured first, should the time run out:

rows         for each target and dtype: lpk.pool by its defaults, the first call, which sets things up, apart from the
             median of three more; then the same search with backend="torch", that is, eagerly, and where they differ
all_targets  every target in one call
references   the paper's procedure in plain PyTorch: with all training samples, and with lpk's calibration samples
profile      one pool of the middle target under torch.profiler: the share of the time in which the card was busy,
             what was launched, and the kernels that took most of it. The last part, as tracing slows down what follows

On an H100 the tickets of bench/h100.toml took 143 s (17 epochs; --rounds 4 makes fewer: 11 epochs), unless RUNS has
them already, and the measurement is to take one to two minutes. A second call on the same machine trains nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import lpk
from bench import busy, search_gpu_words, search_reference
from bench.results import Row
from bench.results_file import ResultsFile
from bench.search_reference import Batches
from lpk.pooling.accuracy import correct_predictions
from lpk.run import Run

PARTS = ("rows", "all_targets", "references", "profile")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
REPETITIONS = 3  # of lpk's pool after the first call, whose median counts
REFERENCE_NETWORKS = 3
BATCH_SIZE = 128  # the reference's


class Contest:
    """One run with everything at hand that a user has before the call: tickets, network, and samples on the device."""

    def __init__(self, run: Run, candidates: int | None = None, backend: str = "auto") -> None:
        self.run = run
        self.candidates = candidates
        self.backend = backend
        self.tickets = run.tickets()
        self.model = run.model()  # in channels_last
        self.train, self.validation, self.test, self.calibration = (
            on_device(split, run.device)
            for split in (run.data.train, run.data.validation, run.data.test, run.calibration())
        )

    def pool(self, target: int | None, dtype: str, **options: Any) -> tuple[Any, float]:
        """What lpk.pool finds, and how many seconds it takes."""
        busy.synchronize()
        began = time.perf_counter()
        made = lpk.pool(
            self.tickets,
            target,
            model=self.model,
            validation=self.validation,
            calibration=self.calibration[0],
            candidates=self.candidates,
            autocast=DTYPES[dtype],
            progress=False,
            **{"backend": self.backend} | options,
        )
        busy.synchronize()
        return made, time.perf_counter() - began

    def test_accuracy(self, state: dict[str, Tensor]) -> float:
        model = self.run.model()
        model.load_state_dict(state)
        return float(correct_predictions(model, self.test).double().mean())


def on_device(split: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """All samples of a split: inputs in channels_last, as the network is, and labels."""
    inputs, labels = split.tensors()
    return inputs.to(device, memory_format=torch.channels_last), labels.to(device)


def measure(
    contest: Contest,
    file: ResultsFile,
    *,
    targets: Sequence[int],
    dtypes: Sequence[str] = tuple(DTYPES),
    parts: Sequence[str] = PARTS,
    networks: int = REFERENCE_NETWORKS,
) -> None:
    """Measures what is asked for, prints it, and keeps it in the file, row by row."""

    def keep(part: str, row: Row) -> None:
        row = {"seed": contest.run.seed} | row
        print(search_gpu_words.line(part, row), flush=True)
        file.keep(part, row)

    for target in targets if "rows" in parts else []:
        for dtype in dtypes:
            keep("rows", compare(contest, target, dtype))
    for dtype in dtypes if "all_targets" in parts else []:
        keep("all_targets", all_targets(contest, dtype))
    for target in targets if "references" in parts else []:
        keep("references", references(contest, target, networks))
    for row in profile(contest, targets[len(targets) // 2], dtypes) if "profile" in parts else []:
        keep("profile", row)


def compare(contest: Contest, target: int, dtype: str) -> Row:
    """One target by lpk's defaults and by eager PyTorch."""
    (made, first), *others = [contest.pool(target, dtype) for _ in range(1 + REPETITIONS)]
    eager, eager_seconds = contest.pool(target, dtype, backend="torch")
    seconds = statistics.median(seconds for _, seconds in others)
    ticket = contest.tickets[target]
    return {
        "target": target,
        "dtype": dtype,
        "density": ticket.density,
        "validation_samples": len(contest.validation[0]),
        "calibration_samples": len(contest.calibration[0]),
        "lpk": {
            "first": first,
            "seconds": seconds,
            "repetitions": [seconds for _, seconds in others],
            "search_seconds": statistics.median(pooled.seconds for pooled, _ in others),
            "forward_samples": made.forward_samples,
            "validated": made.validation_samples,
            "samples_per_second": made.forward_samples / seconds,
            "accepted": sum(step.accepted for step in made.steps),
            "test": contest.test_accuracy(made.state_dict),
            "same_every_time": all(agreement(made, pooled)["same"] for pooled, _ in others),
            "settings": dict(made.settings),
        },
        "eager": {
            "seconds": eager_seconds,
            "samples_per_second": eager.forward_samples / eager_seconds,
            "batches": batches(eager),
        }
        | agreement(made, eager),
        "ticket": {"test": contest.test_accuracy(ticket.state_dict)},
    }


def agreement(ours: lpk.Pooled, theirs: lpk.Pooled) -> Row:
    """Where two searches differ: in each step's coefficient, accuracy and acceptance, and in the network found.

    Counts are defined at one batch size, so that searches of other batch sizes are not the same.
    """
    differing = [
        {"candidate": a.candidate, "ours": list(a[1:]), "theirs": list(b[1:])}
        for a, b in zip(ours.steps, theirs.steps, strict=True)
        if a != b
    ]
    states = list(zip(ours.state_dict.values(), theirs.state_dict.values(), strict=True))
    network = all(torch.equal(a, b) for a, b in states)
    sizes = batches(ours) == batches(theirs)
    return {
        "steps": len(ours.steps),
        "differing": differing,
        "same_network": network,
        "largest_difference": max(float((a.double() - b.double()).abs().max()) for a, b in states),
        "same_batch_sizes": sizes,
        "same": sizes and network and not differing and ours.baseline_accuracy == theirs.baseline_accuracy,
    }


def batches(pooled: lpk.Pooled) -> list[int | None]:
    """The batch sizes of validation and calibration."""
    return [pooled.settings["batch_size"], pooled.settings["calibration_batch_size"]]


def all_targets(contest: Contest, dtype: str) -> Row:
    made, seconds = contest.pool(None, dtype)
    forwarded = sum(pooled.forward_samples for pooled in made)
    return {
        "dtype": dtype,
        "targets": len(made),
        "seconds": seconds,
        "forward_samples": forwarded,
        "samples_per_second": forwarded / seconds,
    }


def profile(contest: Contest, target: int, dtypes: Sequence[str]) -> Iterator[Row]:
    """A pool of each dtype under the profiler; before any of them, the seconds without it, things being set up."""
    seconds = {dtype: [contest.pool(target, dtype)[1] for _ in range(2)][-1] for dtype in dtypes}
    for dtype in dtypes:
        _, device = busy.profiled(lambda dtype=dtype: contest.pool(target, dtype))
        yield {"target": target, "dtype": dtype, "seconds": seconds[dtype], "device": device}


def references(contest: Contest, target: int, networks: int) -> Row:
    """The paper's procedure in plain PyTorch, on all training samples and on lpk's calibration samples."""
    tickets = search_reference.StateDicts(contest.tickets, contest.run.device)
    validation = Batches(*contest.validation, BATCH_SIZE)
    samples = {"training_samples": contest.train, "calibration_samples": contest.calibration}
    return {"target": target} | {
        name: search_reference.measure(
            tickets,
            target,
            contest.model,
            validation,
            Batches(*calibration, BATCH_SIZE),
            candidates=contest.candidates,
            networks=networks,
        )
        for name, calibration in samples.items()
    }
