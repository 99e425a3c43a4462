"""What a call costs: the host alone, for vectors of which nothing else counts, and altogether, for a million weights.

Beside each function of lpk.ops stands PyTorch's single call that does most of the same. On a GPU where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import COMPARABLE, PAPER, Case
from bench.conftest import backend, timed
from lpk import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL, MILLION = 2**10, 2**20
BURST = 20  # calls without a wait: a stream queues 1,024 launches, and Triton needs fewer than fifty for a call
PAIRS = [
    pytest.param(function, contestant, id=f"{DEVICE} {function} {contestant}")
    for function, peer in COMPARABLE.items()
    for contestant in Case(device=DEVICE).contestants(("lpk", "lpk.triton", peer))
]


def call_of(function: str, contestant: str, a: Tensor, b: Tensor, alphas: tuple[float, ...]) -> Callable[[], object]:
    """A call as users write it, with an `out` where one vector is returned. Magnitudes are ready for the peer."""
    keep, out = len(a) // 5, torch.empty_like(a)
    if contestant == "torch.lerp":
        return lambda: torch.lerp(b, a, alphas[0], out=out)
    if contestant == "torch.topk":
        magnitudes = a.abs()
        return lambda: torch.topk(magnitudes, keep, sorted=False)
    match function:
        case "interpolate":
            return lambda: ops.interpolate(a, b, alphas[0], out=out)
        case "interpolate_threshold":
            return lambda: ops.interpolate_threshold(a, b, alphas, keep)
        case "interpolate_prune":
            return lambda: ops.interpolate_prune(a, b, alphas[0], keep, out=out)
        case "interpolate_prune_all":
            return lambda: ops.interpolate_prune_all(a, b, alphas, keep)
        case "magnitude_prune":
            return lambda: ops.magnitude_prune(a, keep, out=out)
        case "magnitude_mask":
            return lambda: ops.magnitude_mask(a, keep)
    raise ValueError(f"no call of {function!r} is known")


def described(operation: str, contestant: str, n: int, coefficients: int) -> dict[str, object]:
    """What bench.results makes a row of. There is no floor for a call."""
    case = Case(n=n, coefficients=coefficients, device=DEVICE)
    return {
        "operation": operation,
        "peer": contestant,
        "device": DEVICE,
        "n": n,
        "dtype": "float32",
        "density": case.density,
        "coefficients": coefficients,
        "distribution": case.distribution,
        "threads": torch.get_num_threads() if DEVICE == "cpu" else None,
        "moved": 0,
        "answered": 1,
    }


def vectors(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.randn(n, generator=generator, device=DEVICE), torch.randn(n, generator=generator, device=DEVICE)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@pytest.mark.benchmark(timer=time.perf_counter)  # which waits for no device
@pytest.mark.parametrize("function, peer", PAIRS)
def test_host(benchmark, function, peer):
    """Until a call returns: eleven coefficients where it takes some."""
    call = call_of(function, peer, *vectors(SMALL), PAPER)
    coefficients = len(PAPER) if function in ("interpolate_threshold", "interpolate_prune_all") else 1

    def burst() -> None:
        for _ in range(BURST):
            call()

    benchmark.group = f"host, {function}"
    benchmark.extra_info.update(described(f"host, {function}", peer, SMALL, coefficients) | {"answered": BURST})
    with backend(peer):
        timed(burst)  # the first call compiles
        benchmark.pedantic(burst, setup=wait, rounds=25)


@pytest.mark.parametrize("function, peer", PAIRS)
def test_call(benchmark, function, peer):
    """Until the device is done, one call after the other: one coefficient."""
    call = call_of(function, peer, *vectors(MILLION), (0.3,))
    benchmark.group = f"call, {function}"
    benchmark.extra_info.update(described(f"call, {function}", peer, MILLION, 1))
    with backend(peer):
        seconds = min(timed(call) for _ in range(3))  # the first call compiles
        benchmark.pedantic(call, rounds=9, iterations=max(1, int(0.005 / seconds)))
