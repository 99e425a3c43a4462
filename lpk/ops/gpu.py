"""The operations on CUDA tensors: the compiled kernels, or Triton's where these were not compiled.

Nothing here waits for the device. The first element that is NaN or infinite is noted in a status word on the device,
one for each, which `raise_if_not_finite` reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lpk import _core
from lpk.ops.cpu import DTYPES
from lpk.ops.direct import empty_bytes, empty_thresholds
from lpk.ops.memory import at

NEVER = 2**63 - 1

_status: dict[torch.device, Tensor] = {}
_status_at: dict[int, int] = {}  # the address of a device's, by its number

Result = TypeVar("Result")


def on_the_vectors_device(operation: Callable[..., Result]) -> Callable[..., Result]:
    """Launches on the device of the first argument, whichever is current."""

    @functools.wraps(operation)
    def run(first: Tensor, *others: object) -> Result:
        if first.get_device() == torch._C._cuda_getDevice():
            return operation(first, *others)
        with torch.cuda.device(first.device):
            return operation(first, *others)

    return run


@on_the_vectors_device
def interpolate(out: Tensor, a: Tensor, b: Tensor, alpha: Tensor | float) -> None:
    if _core.cuda_compiled:
        _core.cuda_interpolate(at(out), at(a), at(b), *_vector(a), _scalar(alpha))
    else:
        _triton().interpolate(out, a, b, _on(a, alpha), first_bad(a.device))


@on_the_vectors_device
def interpolate_threshold(
    a: Tensor, b: Tensor | None, alphas: Tensor | Sequence[float], keep: int
) -> tuple[Tensor, Tensor]:
    count = len(alphas)
    if keep == 0 or count == 0:
        return a.new_full((count,), torch.inf, dtype=torch.float32), a.new_full((count,), -1, dtype=torch.int64)
    if not _core.cuda_compiled:
        return _triton().interpolate_threshold(a, b, _on(a, alphas), keep, first_bad(a.device))
    values, last = empty_thresholds(a, count)
    workspace, known = _workspace(a, count), _known(alphas)
    _core.cuda_interpolate_threshold(
        at(values), at(last), at(a), at(b), *_vector(a), _row(known), count, keep, at(workspace)
    )
    return values, last


@on_the_vectors_device
def interpolate_prune(
    out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor | float, value: Tensor, last: Tensor
) -> None:
    if _core.cuda_compiled:
        numbers = _scalar(alpha), _scalar(value), _scalar(last)
        _core.cuda_interpolate_prune(at(out), at(a), at(b), *_vector(a), *numbers)
    else:
        alpha = _on(a, 1.0 if b is None else alpha)
        _triton().interpolate_prune(out, a, b, alpha, _on(a, value), _on(a, last), first_bad(a.device))


@on_the_vectors_device
def interpolate_prune_all(
    out: Tensor, a: Tensor, b: Tensor, alphas: Tensor | Sequence[float], values: Tensor, last: Tensor
) -> None:
    values, last = _on(a, values), _on(a, last)
    if _core.cuda_compiled:
        known = _known(alphas)
        cuts = _row(known), at(values), at(last), len(alphas)
        _core.cuda_interpolate_prune_all(at(out), at(a), at(b), *_vector(a), *cuts)
    else:
        _triton().interpolate_prune_all(out, a, b, _on(a, alphas), values, last, first_bad(a.device))


@on_the_vectors_device
def magnitude_mask(out: Tensor, x: Tensor, value: Tensor, last: Tensor) -> None:
    if _core.cuda_compiled:
        _core.cuda_magnitude_mask(at(out), at(x), *_vector(x), _scalar(value), _scalar(last))
    else:
        _triton().magnitude_mask(out, x, _on(x, value), _on(x, last), first_bad(x.device))


@on_the_vectors_device
def find_and_prune(out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor | float, keep: int) -> None:
    """interpolate_prune where the threshold is not known: one call of the extension for both."""
    if not _core.cuda_compiled or keep == 0:
        alphas = alpha.reshape(1) if isinstance(alpha, Tensor) else [alpha]
        return interpolate_prune(out, a, b, alpha, *interpolate_threshold(a, b, alphas, keep))
    workspace = _workspace(a, 1)
    _core.cuda_find_and_prune(at(out), at(a), at(b), *_vector(a), _scalar(alpha), keep, at(workspace))


@on_the_vectors_device
def find_and_prune_all(out: Tensor, a: Tensor, b: Tensor, alphas: Tensor | Sequence[float], keep: int) -> None:
    count = len(alphas)
    if not _core.cuda_compiled or keep == 0 or count == 0:
        return interpolate_prune_all(out, a, b, alphas, *interpolate_threshold(a, b, alphas, keep))
    workspace, known = _workspace(a, count), _known(alphas)
    _core.cuda_find_and_prune_all(at(out), at(a), at(b), *_vector(a), _row(known), count, keep, at(workspace))


@on_the_vectors_device
def find_and_mask(out: Tensor, x: Tensor, keep: int) -> None:
    if not _core.cuda_compiled or keep == 0:
        return magnitude_mask(out, x, *interpolate_threshold(x, None, [1.0], keep))
    workspace = _workspace(x, 1)
    _core.cuda_find_and_mask(at(out), at(x), *_vector(x), keep, at(workspace))


def first_bad(device: torch.device) -> Tensor:
    """The device's status word, int64 [1]: the index of the first bad element since it was last read."""
    if device not in _status:
        _status[device] = torch.full((1,), NEVER, dtype=torch.int64, device=device)
    return _status[device]


def raise_if_not_finite(device: torch.device | None = None) -> None:
    """Waits for the device, and raises ValueError if an operation on it met a NaN or an infinity since the last call.

    Args:
        device: a CUDA device; None: every one that was used.
    """
    if device is not None and device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    for used in [device] if device is not None else list(_status):
        torch.cuda.synchronize(used)  # the streams beside the current one too
        index = int(first_bad(used))
        first_bad(used).fill_(NEVER)
        if index != NEVER:
            raise ValueError(f"the element [{index}] of a vector on {used} is nan or inf; every weight must be finite")


def _vector(x: Tensor) -> tuple[int, int, int, int]:
    """What the extension wants to know beside addresses: n, dtype, stream, status word."""
    number = x.get_device()
    status = _status_at.get(number)
    if status is None:
        status = _status_at[number] = at(first_bad(x.device))
    return x.numel(), DTYPES[x.dtype], torch._C._cuda_getCurrentRawStream(number), status


def _workspace(x: Tensor, count: int) -> Tensor:
    """For a search for the thresholds of so many coefficients; to be held until the search is launched."""
    return empty_bytes(x, _core.cuda_workspace_bytes(x.numel(), count))


def _scalar(number: Tensor | float) -> tuple[float, int]:
    """A number by its value, or by its address where it lies on a device and must not be read here."""
    if isinstance(number, float):
        return number, 0
    return (0, at(number)) if number.is_cuda else (number.item(), 0)


def _known(alphas: Tensor | Sequence[float]) -> Tensor | Sequence[float]:
    """Coefficients as numbers, or in a row on a device, where they must not be read here."""
    if not isinstance(alphas, Tensor):
        return alphas
    return alphas.contiguous() if alphas.is_cuda else alphas.tolist()


def _row(alphas: Tensor | Sequence[float]) -> tuple[Sequence[float], int]:
    """Coefficients by their values, or by their address."""
    return ([], at(alphas)) if isinstance(alphas, Tensor) else (alphas, 0)


def _on(x: Tensor, numbers: Tensor | float | Sequence[float]) -> Tensor:
    """Numbers on the device of a vector, [K]. A copy from memory that is not pinned would wait for all that the device
    has to do before it."""
    if isinstance(numbers, float):
        return torch.full((1,), numbers, dtype=torch.float32, device=x.device)
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    if numbers.device.type == "cpu" and x.is_cuda:
        numbers = numbers.pin_memory()
    return numbers.reshape(-1).to(x.device, non_blocking=True).contiguous()


def _triton():  # type: ignore[no-untyped-def]
    """Triton is imported where it is needed: lpk works where it is missing."""
    from lpk import kernels

    return kernels
