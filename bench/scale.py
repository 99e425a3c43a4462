"""Several processes beside one: training, pools, and what 8 and 64 GPUs would make of it.

python -m bench.scale [--preset demo] [--processes 1 2] [--results bench/results]

Measured here: steps of lpk.Trainer at the preset's batch, shared out among processes of one thread each, with
BatchNorm over the whole batch and without; all targets of a pool, as a queue; what a take from the queue costs, and an
all-reduce of the gradients. The forecast for GPUs is reckoned from such parts, and says which were assumed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import lpk
from bench.results import Row, machine, slug
from bench.results_file import ResultsFile
from lpk import data, models, presets
from lpk.distributed import together
from lpk.networks.prunable import convolutions
from lpk.networks.synchronised import synchronised
from lpk.pruning.train import Trainer

EPOCHS = 4  # timed, after one that is not; of so many steps each:
STEPS = 40
TAKES = 2000
SAMPLES = 1000  # of a pool's validation
ROUNDS = 7  # eight targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.scale")
    parser.add_argument("--preset", default="demo", help="its network, batch and data; default: demo")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many; default: 1 2")
    parser.add_argument("--results", type=Path, help="the directory that scale-<machine>.json is written to")
    assumed = parser.add_argument_group("the forecast's assumptions, which are not measured")
    assumed.add_argument("--images", type=float, default=2500, help="a second that one GPU trains; default: 2,500")
    assumed.add_argument("--within", type=float, default=200, help="GB/s of an all-reduce in a machine; default: 200")
    assumed.add_argument("--between", type=float, default=25, help="GB/s of one between machines; default: 25")
    assumed.add_argument("--latency", type=float, default=30, help="µs of a small all-reduce; default: 30")
    assumed.add_argument("--targets", type=int, default=10, help="of a pool, all alike; default: 10")
    given = parser.parse_args()
    here = machine() | {"gpu": None}
    path = given.results / f"scale-{slug(here)}.json" if given.results else None
    head = {"machine": here, "benchmark": "scale", "preset": {"preset": given.preset}}
    file = ResultsFile(path, head, ("measured", "forecast"))
    rows = []
    for count in given.processes:
        row = in_processes(count, given.preset)
        rows.append(row)
        file.keep("measured", {"seed": 0, "contestant": f"{count} processes"} | row)
        print(f"{count} processes: {row}", flush=True)
    forecasts = [forecast(given, gpus) for gpus in (1, 8, 64)]
    for gpus, row in zip((1, 8, 64), forecasts, strict=True):
        file.keep("forecast", {"seed": 0, "contestant": f"{gpus} GPUs"} | row)
    print("\n" + table(given, rows, forecasts))
    if path:
        print(f"written: {path}")


# --- measured ---------------------------------------------------------------------------------------------------------


def in_processes(count: int, preset: str) -> Row:
    """What the first of so many processes measured."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        processes = [context.Process(target=_process, args=(rank, count, preset, directory)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found: Row = json.loads((Path(directory) / "found").read_text())
        return found


def _process(rank: int, count: int, preset: str, directory: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{directory}/store", count)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(minutes=5))
    found = {
        "step_ms": 1e3 * _step(preset, rank, whole=True),
        "step_own_statistics_ms": 1e3 * _step(preset, rank, whole=False),
        "allreduce_ms": 1e3 * _allreduce(preset),
        "take_us": 1e6 * _take(),
        "pool_s": _pool(preset),
    }
    if rank == 0:
        (Path(directory) / "found").write_text(json.dumps(found))
    distributed.destroy_process_group()


class Subject(NamedTuple):
    model: nn.Module
    data: data.Data
    preset: presets.Preset


def _subject(preset: str) -> Subject:
    loaded = presets.load(preset)
    size = loaded.train.batch_size * STEPS
    found = data.load(loaded.data.name, validation=SAMPLES, train=size)
    torch.manual_seed(0)
    model = models.build(loaded.model.name, classes=found.classes, shape=found.shape, **loaded.model.options)
    return Subject(model.to(memory_format=torch.channels_last), found, loaded)


def _step(preset: str, rank: int, *, whole: bool) -> float:
    """Seconds of a training step at the whole batch: the median epoch's. whole: BatchNorm's statistics are, too."""
    model, found, loaded = _subject(preset)
    if distributed.get_world_size() > 1:
        model = DistributedDataParallel(synchronised(model) if whole else model)
    trainer = Trainer(found.train, loaded.train)
    times = []
    for epoch in range(EPOCHS + 1):
        distributed.barrier()
        began = time.perf_counter()
        trainer(model, epoch, epoch + 1)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / STEPS


def _allreduce(preset: str) -> float:
    """Seconds in which the gradients of all parameters are summed."""
    gradients = torch.zeros(sum(parameter.numel() for parameter in _subject(preset).model.parameters()))
    times = []
    for _ in range(20):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(gradients)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _take() -> float:
    """Seconds until the next one is taken from a queue."""
    with together() as ranks:
        ranks.share(None)
        began = time.perf_counter()
        taken = sum(1 for _ in ranks.shares(TAKES))
        return (time.perf_counter() - began) / taken


def _pool(preset: str) -> float:
    """Seconds of all targets."""
    model, found, loaded = _subject(preset)

    def train(model: nn.Module, start: int, stop: int) -> None:
        """Weights as training might leave them: what a network computes does not matter to its speed."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)

    with lpk.distributed.alone():
        tickets = lpk.imp(
            model, train, epochs=1, rounds=ROUNDS, rewind=0, seed=0, prunable=convolutions(model), progress=False
        )
    size = loaded.pool.batch_size
    calibration = found.train.take(loaded.pool.calibration).loader(size)
    distributed.barrier()
    began = time.perf_counter()
    lpk.pool(
        tickets,
        model=model,
        validation=found.validation.loader(size),
        calibration=calibration,
        search="exhaustive",
        progress=False,
    )
    distributed.barrier()
    return time.perf_counter() - began


# --- reckoned ---------------------------------------------------------------------------------------------------------


def forecast(given: argparse.Namespace, gpus: int) -> Row:
    """Of ImageNet's ResNet-18 at the paper's batch: images a second, and how much sooner a pool is there.

    Nothing is overlapped: the gradients wait for all of the backward pass, and each BatchNorm layer for two sums.
    """
    preset = presets.load("imagenet-resnet18")
    model = models.build(preset.model.name, classes=1000, shape=(3, 224, 224), **preset.model.options)
    gradients = 4 * sum(parameter.numel() for parameter in model.parameters())
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    batch = preset.train.batch_size
    compute = batch / gpus / given.images
    bandwidth = 1e9 * (given.within if gpus <= 8 else given.between)
    exchange = 2 * gradients * (gpus - 1) / gpus / bandwidth if gpus > 1 else 0.0
    wait = 2 * layers * given.latency / 1e6 if gpus > 1 else 0.0
    return {
        "images_per_second": batch / (compute + exchange + wait),
        "efficiency": compute / (compute + exchange + wait),
        "pool_speedup": given.targets / queue([1.0] * given.targets, gpus),
    }


def queue(seconds: Sequence[float], processes: int) -> float:
    """When the last of them is done, where each process takes the next one as soon as it has none."""
    free = [0.0] * processes
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def table(given: argparse.Namespace, rows: Sequence[Row], forecasts: Sequence[Row]) -> str:
    lines = [
        "| processes, one thread each | training step, ms | efficiency | … own statistics, ms | efficiency | pool, s "
        "| efficiency | all-reduce, ms | a take, µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def efficiency(key: str, i: int) -> str:
        counts = given.processes
        return f"{rows[0][key] * counts[0] / (rows[i][key] * counts[i]):.0%}"

    for i, (count, row) in enumerate(zip(given.processes, rows, strict=True)):
        cells: list[Any] = [count]
        for key in ("step_ms", "step_own_statistics_ms", "pool_s"):
            cells += [f"{row[key]:.3g}", efficiency(key, i)]
        cells += [f"{row['allreduce_ms']:.2g}", f"{row['take_us']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"Forecast, not measured: {given.images:,.0f} images a second on one GPU, all-reduces of {given.within:g} GB/s "
        f"in a machine and {given.between:g} between machines, {given.latency:g} µs for each of BatchNorm's.",
        "",
        f"| GPUs | images a second | efficiency | a pool of {given.targets} targets, times sooner |",
        "|---|---|---|---|",
    ]
    for gpus, row in zip((1, 8, 64), forecasts, strict=True):
        rate, share = row["images_per_second"], row["efficiency"]
        lines.append(f"| {gpus} | {rate:,.0f} | {share:.0%} | {row['pool_speedup']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
