"""A function in several processes that are one group of torch.distributed, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

LIMIT = 60.0  # seconds
IMPORTED = ["lpk.experiments", "torch.distributed", "torch.nn.parallel", "tests.pooling.pools"]  # once, not by each


def in_ranks(count: int, function, directory: Path, *arguments, backend: str = "gloo"):
    """What function(rank, *arguments) returned in each of `count` processes, by rank: a value, or the exception's text.

    directory: an empty one, for what they leave. backend: "nccl" gives each a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    processes = [
        context.Process(target=_process, args=(function, rank, count, directory, arguments, backend))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
    paths = [directory / f"returned-{rank}" for rank in range(count)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _process(function, rank: int, count: int, directory: Path, arguments, backend: str) -> None:
    if backend == "nccl":
        torch.cuda.set_device(rank)
    sys.stderr = (directory / f"stderr-{rank}").open("w")
    torch.set_num_threads(1)
    store = distributed.FileStore(str(directory / "store"), count)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=30))
    try:
        returned = function(rank, *arguments)
    except Exception as error:
        traceback.print_exc()
        returned = f"{type(error).__name__}: {error}"
    torch.save(returned, directory / f"returned-{rank}")
    sys.stderr.flush()
    distributed.destroy_process_group()
