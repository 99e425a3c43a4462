"""The operations on CPU tensors: the compiled kernels, on as many threads as PyTorch uses.

Tensors are dense, with memory of their own (lpk.ops.memory), of dtypes and sizes that fit: who calls has checked that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpk import _core  # after torch, whose libgomp it shares
from lpk.ops.memory import at

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
CHUNK = _core.chunk  # elements that the kernels work on as a unit


def interpolate(out: Tensor, a: Tensor, b: Tensor, alpha: Tensor | float) -> None:
    _core.interpolate(at(out), at(a), at(b), *_vector(a), float(alpha))


def interpolate_threshold(
    a: Tensor, b: Tensor | None, alphas: Tensor | Sequence[float], keep: int
) -> tuple[Tensor, Tensor]:
    bits, last = _core.interpolate_threshold(at(a), at(b), *_vector(a), _list(alphas), keep)
    values = torch.tensor(bits, dtype=torch.int32, device=a.device).view(torch.float32)
    return values, torch.tensor(last, dtype=torch.int64, device=a.device)


def interpolate_prune(
    out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor | float, value: Tensor, last: Tensor
) -> None:
    pair = int(value.view(torch.int32)), int(last)
    _core.interpolate_prune(at(out), at(a), at(b), *_vector(a), float(alpha), *pair)


def interpolate_prune_all(
    out: Tensor, a: Tensor, b: Tensor, alphas: Tensor | Sequence[float], values: Tensor, last: Tensor
) -> None:
    cuts = values.view(torch.int32).tolist(), last.tolist()
    _core.interpolate_prune_all(at(out), at(a), at(b), *_vector(a), _list(alphas), *cuts)


def magnitude_mask(out: Tensor, x: Tensor, value: Tensor, last: Tensor) -> None:
    _core.magnitude_mask(at(out), at(x), *_vector(x), int(value.view(torch.int32)), int(last))


def find_and_prune(out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor | float, keep: int) -> None:
    """interpolate_prune where the threshold is not known."""
    vectors = at(a), at(b), *_vector(a)
    (bits,), (last,) = _core.interpolate_threshold(*vectors, [float(alpha)], keep)
    _core.interpolate_prune(at(out), *vectors, float(alpha), bits, last)


def find_and_prune_all(out: Tensor, a: Tensor, b: Tensor, alphas: Tensor | Sequence[float], keep: int) -> None:
    vectors, known = (at(a), at(b), *_vector(a)), _list(alphas)
    _core.interpolate_prune_all(at(out), *vectors, known, *_core.interpolate_threshold(*vectors, known, keep))


def find_and_mask(out: Tensor, x: Tensor, keep: int) -> None:
    (bits,), (last,) = _core.interpolate_threshold(at(x), 0, *_vector(x), [1.0], keep)
    _core.magnitude_mask(at(out), at(x), *_vector(x), bits, last)


def find_support(support: Tensor, positions: Tensor, a: Tensor, b: Tensor) -> int:
    """Fills in both; returns how many elements are in the support."""
    return _core.find_support(at(support), at(positions), at(a), at(b), *_vector(a))


def pack(out: Tensor, x: Tensor, support: Tensor, positions: Tensor) -> None:
    _core.pack(at(out), at(x), *_vector(x), at(support), at(positions))


def interpolate_prune_packed(
    out: Tensor, a: Tensor, b: Tensor, support: Tensor, positions: Tensor, alpha: Tensor, value: Tensor, last: Tensor
) -> None:
    where = at(support), at(positions), out.numel()
    pair = int(value.view(torch.int32)), int(last)
    _core.interpolate_prune_packed(at(out), at(a), at(b), *_vector(a), *where, float(alpha), *pair)


def _list(alphas: Tensor | Sequence[float]) -> list[float]:
    return alphas.tolist() if isinstance(alphas, Tensor) else list(alphas)


def _vector(x: Tensor) -> tuple[int, int, int]:
    """What the extension wants to know beside addresses: n, dtype, threads."""
    return x.numel(), DTYPES[x.dtype], torch.get_num_threads()
