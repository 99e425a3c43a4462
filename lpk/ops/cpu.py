"""The operations on CPU tensors: the compiled kernels, on as many threads as PyTorch uses."""

from __future__ import annotations

import torch
from torch import Tensor

from lpk import _core  # after torch, whose libgomp it shares
from lpk.ops.memory import address

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
CHUNK = _core.chunk  # elements that the kernels work on as a unit


def interpolate(out: Tensor, a: Tensor, b: Tensor, alpha: Tensor) -> None:
    _core.interpolate(address("out", out), address("a", a), address("b", b), *_vector(a), float(alpha))


def interpolate_threshold(a: Tensor, b: Tensor | None, alphas: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    bits, last = _core.interpolate_threshold(address("a", a), address("b", b), *_vector(a), alphas.tolist(), keep)
    values = torch.tensor(bits, dtype=torch.int32, device=a.device).view(torch.float32)
    return values, torch.tensor(last, dtype=torch.int64, device=a.device)


def interpolate_prune(out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor, value: Tensor, last: Tensor) -> None:
    pair = int(value.view(torch.int32)), int(last)
    _core.interpolate_prune(address("out", out), address("a", a), address("b", b), *_vector(a), float(alpha), *pair)


def interpolate_prune_all(out: Tensor, a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor) -> None:
    cuts = values.view(torch.int32).tolist(), last.tolist()
    _core.interpolate_prune_all(
        address("out", out), address("a", a), address("b", b), *_vector(a), alphas.tolist(), *cuts
    )


def magnitude_mask(out: Tensor, x: Tensor, value: Tensor, last: Tensor) -> None:
    _core.magnitude_mask(address("out", out), address("x", x), *_vector(x), int(value.view(torch.int32)), int(last))


def find_support(support: Tensor, positions: Tensor, a: Tensor, b: Tensor) -> int:
    """Fills in both; returns how many elements are in the support."""
    return _core.find_support(
        address("support", support), address("positions", positions), address("a", a), address("b", b), *_vector(a)
    )


def pack(out: Tensor, x: Tensor, support: Tensor, positions: Tensor) -> None:
    _core.pack(
        address("out", out), address("x", x), *_vector(x), address("support", support), address("positions", positions)
    )


def interpolate_prune_packed(
    out: Tensor, a: Tensor, b: Tensor, support: Tensor, positions: Tensor, alpha: Tensor, value: Tensor, last: Tensor
) -> None:
    where = address("support", support), address("positions", positions), out.numel()
    pair = int(value.view(torch.int32)), int(last)
    _core.interpolate_prune_packed(
        address("out", out), address("a", a), address("b", b), *_vector(a), *where, float(alpha), *pair
    )


def _vector(x: Tensor) -> tuple[int, int, int]:
    """What the extension wants to know beside addresses: n, dtype, threads."""
    return x.numel(), DTYPES[x.dtype], torch.get_num_threads()
