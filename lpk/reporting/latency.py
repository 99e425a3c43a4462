"""How long networks take on this machine's CPU: dense in PyTorch, and sparsified, in turns."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lpk import ops, sparse
from lpk.networks.wrappers import plain_copy
from lpk.tickets.versions import processor

BATCH = 16  # samples: a block of the engine
BUDGET = 0.3  # seconds, for each network and number of samples
MOST = 999  # repetitions
SIZES = ("one", "batch")  # of what is measured: one sample, and a batch


def measure(
    model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, *, budget: float
) -> dict[str, dict[str, float]]:
    """Median seconds of a call: {"one": {"pytorch": …, "sparse": …}, "batch": …}, the latter with all of `inputs`.

    Both are called in turns until `budget` seconds for each are spent; the first calls, which prepare what comes after,
    are not counted. PyTorch computes images in channels_last, its faster layout.

    Raises NotSupported, a ValueError, or TypeError where lpk.sparsify does not take the network.
    """
    dense = plain_copy(model).cpu().eval()
    dense.load_state_dict(state)
    fast = sparse.sparsify(dense, dict(state))
    for parameter in dense.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    found = {}
    with torch.inference_mode():
        for size, part in zip(SIZES, (inputs[:1], inputs), strict=True):
            images = part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part
            calls = {"pytorch": lambda x=images: dense(x), "sparse": lambda x=part: fast(x)}
            found[size] = in_turns(calls, budget)
    return found


def in_turns(calls: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """The median seconds of each call: in turns, so that whatever else the machine does is shared; at least once."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for _ in range(MOST):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() - began >= budget * len(calls):
            break
    return {name: statistics.median(own) for name, own in times.items()}


def machine(batch: int) -> dict[str, Any]:
    """What latencies depend on beside the network: how many samples, where, and when."""
    return {
        "batch": batch,
        "processor": processor(),
        "instruction_set": ops.instruction_set(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
