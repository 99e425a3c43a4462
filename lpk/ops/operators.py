"""torch.ops.lpk: the operators behind lpk.ops, each with its schema, implementation and fake kernel.

Importing this registers them. Here is the one place that picks the backend that runs them.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.library import custom_op

from lpk.ops import cpu, gpu
from lpk.ops.checks import (
    check_alphas,
    check_apart,
    check_keep,
    check_memory,
    check_out,
    check_out_of_packed,
    check_packed,
    check_rows,
    check_threshold,
    check_vectors,
)


def backend(x: Tensor) -> ModuleType:
    """What runs the operations on this vector's device."""
    if x.is_cuda:
        return gpu
    if x.is_cpu:
        return cpu
    raise ValueError(f"a vector on {x.device} is not supported; CPU and CUDA tensors are")


@custom_op("lpk::interpolate_out", mutates_args=("out",))
def _interpolate_out(a: Tensor, b: Tensor, alpha: Tensor, out: Tensor) -> None:
    check_memory(a=a, b=b, alpha=alpha, out=out)
    check_vectors(a=a, b=b, out=out)
    check_out(out, a=a, b=b)
    check_alphas(alpha)
    backend(a).interpolate(out, a, b, alpha)


@_interpolate_out.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, out: Tensor) -> None:
    check_vectors(a=a, b=b, out=out)


@custom_op("lpk::interpolate", mutates_args=())
def _interpolate(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    check_memory(a=a, b=b, alpha=alpha)
    check_vectors(a=a, b=b)
    check_alphas(alpha)
    out = torch.empty_like(a)
    backend(a).interpolate(out, a, b, alpha)
    return out


@_interpolate.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    check_vectors(a=a, b=b)
    return torch.empty_like(a)


@custom_op("lpk::interpolate_threshold", mutates_args=())
def _interpolate_threshold(a: Tensor, b: Tensor, alphas: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    check_memory(a=a, b=b, alphas=alphas)
    check_vectors(a=a, b=b)
    check_keep(keep, a.numel())
    check_alphas(alphas)
    return backend(a).interpolate_threshold(a, b, alphas, keep)


@_interpolate_threshold.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    check_vectors(a=a, b=b)
    check_keep(keep, a.numel())
    return a.new_empty(alphas.shape, dtype=torch.float32), a.new_empty(alphas.shape, dtype=torch.int64)


@custom_op("lpk::interpolate_prune_out", mutates_args=("out",))
def _interpolate_prune_out(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor, out: Tensor) -> None:
    check_memory(a=a, b=b, alpha=alpha, value=value, last=last, out=out)
    check_vectors(a=a, b=b, out=out)
    check_out(out, a=a, b=b)
    check_alphas(alpha)
    check_threshold(value)
    backend(a).interpolate_prune(out, a, b, alpha, value, last)


@_interpolate_prune_out.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor, out: Tensor) -> None:
    check_vectors(a=a, b=b, out=out)


@custom_op("lpk::interpolate_prune", mutates_args=())
def _interpolate_prune(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor) -> Tensor:
    check_memory(a=a)
    out = torch.empty_like(a)
    _interpolate_prune_out(a, b, alpha, value, last, out)
    return out


@_interpolate_prune.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor) -> Tensor:
    check_vectors(a=a, b=b)
    return torch.empty_like(a)


@custom_op("lpk::interpolate_prune_all_out", mutates_args=("out",))
def _interpolate_prune_all_out(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor, out: Tensor) -> None:
    check_memory(a=a, b=b, alphas=alphas, values=values, last=last, out=out)
    check_vectors(a=a, b=b)
    check_rows(out, a, alphas)
    check_apart(out, a=a, b=b)
    check_alphas(alphas)
    check_threshold(values)
    backend(a).interpolate_prune_all(out, a, b, alphas, values, last)


@_interpolate_prune_all_out.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor, out: Tensor) -> None:
    check_vectors(a=a, b=b)
    check_rows(out, a, alphas)


@custom_op("lpk::interpolate_prune_all", mutates_args=())
def _interpolate_prune_all(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor) -> Tensor:
    check_vectors(a=a, b=b)
    out = a.new_empty(len(alphas), len(a))
    _interpolate_prune_all_out(a, b, alphas, values, last, out)
    return out


@_interpolate_prune_all.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor) -> Tensor:
    check_vectors(a=a, b=b)
    return a.new_empty(len(alphas), len(a))


@custom_op("lpk::magnitude_prune_out", mutates_args=("out",))
def _magnitude_prune_out(x: Tensor, keep: int, out: Tensor) -> None:
    check_memory(x=x, out=out)
    check_vectors(x=x, out=out)
    check_out(out, x=x)
    check_keep(keep, x.numel())
    backend(x).find_and_prune(out, x, None, 1.0, keep)


@_magnitude_prune_out.register_fake
def _(x: Tensor, keep: int, out: Tensor) -> None:
    check_vectors(x=x, out=out)
    check_keep(keep, x.numel())


@custom_op("lpk::magnitude_prune", mutates_args=())
def _magnitude_prune(x: Tensor, keep: int) -> Tensor:
    check_memory(x=x)
    out = torch.empty_like(x)
    _magnitude_prune_out(x, keep, out)
    return out


@_magnitude_prune.register_fake
def _(x: Tensor, keep: int) -> Tensor:
    check_vectors(x=x)
    check_keep(keep, x.numel())
    return torch.empty_like(x)


@custom_op("lpk::magnitude_mask", mutates_args=())
def _magnitude_mask(x: Tensor, keep: int) -> Tensor:
    check_memory(x=x)
    check_vectors(x=x)
    check_keep(keep, x.numel())
    mask = torch.empty_like(x, dtype=torch.bool)
    backend(x).find_and_mask(mask, x, keep)
    return mask


@_magnitude_mask.register_fake
def _(x: Tensor, keep: int) -> Tensor:
    check_vectors(x=x)
    check_keep(keep, x.numel())
    return torch.empty_like(x, dtype=torch.bool)


@custom_op("lpk::pack", mutates_args=(), device_types="cpu")
def _pack(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_memory(a=a, b=b)
    check_vectors(a=a, b=b)
    support, positions = _empty_support(a)
    m = cpu.find_support(support, positions, a, b)
    packed = a.new_empty(m), b.new_empty(m)
    for out, x in zip(packed, (a, b), strict=True):
        cpu.pack(out, x, support, positions)
    return *packed, support, positions


@_pack.register_fake
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_vectors(a=a, b=b)
    m = torch.library.get_ctx().new_dynamic_size()
    return a.new_empty(m), b.new_empty(m), *_empty_support(a)


def _empty_support(a: Tensor) -> tuple[Tensor, Tensor]:
    n = a.numel()
    return a.new_empty(-(-n // 8), dtype=torch.uint8), a.new_empty(-(-n // cpu.CHUNK) + 1, dtype=torch.int64)


@custom_op("lpk::interpolate_prune_packed_out", mutates_args=("out",), device_types="cpu")
def _interpolate_prune_packed_out(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
    out: Tensor,
) -> None:
    check_memory(a=a, b=b, support=support, positions=positions, alpha=alpha, value=value, last=last, out=out)
    check_packed(a, b, support, positions, n)
    check_out_of_packed(out, n, a, b=b, support=support, positions=positions)
    check_keep(keep, n)
    check_alphas(alpha)
    check_threshold(value)
    if keep <= a.numel() and float(value) > 0.0:
        cpu.interpolate_prune_packed(out, a, b, support, positions, alpha, value, last)
        return
    # The zeros that survive are those of lowest index in the whole vector, which is therefore written first.
    everything = torch.zeros((), dtype=torch.float32, device="cpu"), torch.tensor(n, dtype=torch.int64, device="cpu")
    cpu.interpolate_prune_packed(out, a, b, support, positions, alpha, *everything)
    _magnitude_prune_out(out, keep, out)


@_interpolate_prune_packed_out.register_fake
def _(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
    out: Tensor,
) -> None:
    check_packed(a, b, support, positions, n)
    check_vectors(out=out)
    check_keep(keep, n)


@custom_op("lpk::interpolate_prune_packed", mutates_args=(), device_types="cpu")
def _interpolate_prune_packed(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
) -> Tensor:
    out = a.new_empty(n)
    _interpolate_prune_packed_out(a, b, support, positions, n, alpha, keep, value, last, out)
    return out


@_interpolate_prune_packed.register_fake
def _(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
) -> Tensor:
    check_packed(a, b, support, positions, n)
    check_keep(keep, n)
    return a.new_empty(n)
