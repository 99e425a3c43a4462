"""What a GPU did while something ran, by torch.profiler: how long it was busy, and what was launched."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity

Result = TypeVar("Result")
WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # the categories of a trace in which the device does something
CALLS = ("cuda_runtime", "cuda_driver")  # and those of what the host asks of it
TOP = 10  # kernels that are named
# The tracing library, taken down and started again, has crashed where CUDA graphs are replayed: it stays.
KEPT = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}


def profiled(call: Callable[[], Result]) -> tuple[Result, dict[str, Any] | None]:
    """What a call returns, and what `summary` says of it; None where the device did nothing, as without a GPU.

    Only what concerns the device is traced: a trace of PyTorch's operators, too, would slow the host down. Tracing goes
    on costing something after the call: time what is timed before.
    """
    for name, value in KEPT.items():
        os.environ.setdefault(name, value)
    activities = [ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities):
        synchronize()  # the first start of a trace takes seconds
    with torch.profiler.profile(activities=activities) as profiler:
        synchronize()
        began = time.perf_counter()
        result = call()
        synchronize()
        wall = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return result, summary(events, wall)


def summary(events: Iterable[dict[str, Any]], wall: float) -> dict[str, Any] | None:
    """Of a trace's events what the device did in `wall` seconds; None where it did nothing.

    Returns seconds (`wall`; `busy`, in which at least one kernel, copy or fill ran), `share` = busy / wall, how many
    kernels ran, how many of the launches were of a kernel or a graph, how often the host waited, and the kernels that
    took most of the time: name, count, seconds.
    """
    spans, calls, kernels = [], [], {}
    for event in events:
        category = event.get("cat")
        if event.get("ph") == "X" and category in WORK:
            spans.append((event["ts"], event["ts"] + event["dur"]))
            if category == "kernel":
                count, microseconds = kernels.get(event["name"], (0, 0.0))
                kernels[event["name"]] = count + 1, microseconds + event["dur"]
        elif event.get("ph") == "X" and category in CALLS:
            calls.append(event["name"])
    if not spans:
        return None
    busy = covered(spans) / 1e6
    longest = sorted(kernels.items(), key=lambda kernel: -kernel[1][1])[:TOP]
    return {
        "wall": wall,
        "busy": busy,
        "share": busy / wall,
        "kernels": sum(count for count, _ in kernels.values()),
        "kernel_launches": sum(name.startswith(("cudaLaunch", "cuLaunch")) for name in calls),
        "graph_launches": sum("GraphLaunch" in name for name in calls),
        "synchronizations": sum("Synchronize" in name for name in calls),
        "top": [[name, count, microseconds / 1e6] for name, (count, microseconds) in longest],
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (begin, end), which may overlap and come in any order."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def synchronize() -> None:
    """Waits for the GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
