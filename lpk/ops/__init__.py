"""The kernels as functions of tensors; operators has the PyTorch operators behind them.

For flat vectors a and b and a coefficient alpha, rounded to float32, with beta = 1 - alpha in float32:

    x_j = fma(alpha, a_j, beta * b_j)      in float32, then rounded to the vectors' dtype           (paper, equation 1)

Pruning keeps the `keep` entries of largest |x_j| as stored; among equal magnitudes the lower index survives, and what
does not survive becomes +0. Every backend, instruction set and thread count returns the same bits.

This holds for a_j = b_j, too, where x_j may be the number beside them: alpha and beta are rounded. For what a pool does
not prune, lpk.pooling.interpolations therefore keeps the values in which both networks agree.

Vectors are one-dimensional contiguous tensors of dtype float32, float16 or bfloat16, all of one dtype and device.
Errors, for every function: TypeError for another dtype; ValueError for shapes that do not match, a vector that is not
contiguous, `keep` outside 0..n, a coefficient outside [0, 1], an `out` that overlaps an input without being it, and
weights that are NaN or infinite; RuntimeError where a gradient would be lost. On a GPU no function waits for the
device: coefficients and thresholds may be device tensors, and `raise_if_not_finite` tells afterwards of NaN and
infinity.

operators   the PyTorch operators torch.ops.lpk, one for each function, with their fake kernels
checks      what they refuse
direct      when a call needs neither
cpu, gpu    what they run: lpk._core (csrc/cpu, csrc/cuda) or lpk.kernels (Triton)
memory      what native code may be given the address of
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpk import _core
from lpk.ops import operators as operators  # registers torch.ops.lpk
from lpk.ops.checks import Threshold, check_inputs, check_keep, check_on_cpu, number, numbers, threshold_pair
from lpk.ops.direct import (
    are_plain,
    are_rows,
    are_thresholds,
    changed,
    coefficients,
    empty_like,
    empty_mask,
    empty_rows,
    is_coefficient,
    is_keep,
    is_threshold,
)
from lpk.ops.gpu import raise_if_not_finite as raise_if_not_finite
from lpk.ops.operators import backend


class Packed(NamedTuple):
    """Two vectors of n elements without those that are +0 in both; `pack` makes it.

    Attributes:
        a, b: the m elements left of each vector, in order, [m].
        support: uint8 [ceil(n / 8)], whose bit i % 8 of byte i // 8 says whether element i is one of them.
        positions: int64 [ceil(n / 32768) + 1], how many of them stand before each 32768 elements; the last entry is m.
        n: the size of the vectors.
    """

    a: Tensor
    b: Tensor
    support: Tensor
    positions: Tensor
    n: int


def interpolate(a: Tensor, b: Tensor, alpha: float | Tensor, *, out: Tensor | None = None) -> Tensor:
    """x = alpha * a + (1 - alpha) * b (equation 1).

    Args:
        a, b: vectors [n]; `a` is the network that alpha weighs.
        alpha: coefficient in [0, 1], or a tensor of one element.
        out: where to write; may be `a` or `b` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `a`.
    """
    if are_plain(a, b, out) and is_coefficient(alpha, a):
        result = empty_like(a) if out is None else changed(out)
        backend(a).interpolate(result, a, b, alpha)
        return result
    check_inputs(a=a, b=b, alpha=alpha, out=out)
    alpha = number("alpha", alpha, torch.float32)
    if out is None:
        return torch.ops.lpk.interpolate(a, b, alpha)
    torch.ops.lpk.interpolate_out(a, b, alpha, out)
    return out


def interpolate_threshold(a: Tensor, b: Tensor, alphas: Sequence[float] | Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """For each coefficient, where `interpolate_prune` cuts: one sweep over a and b for all of them.

    Args:
        a, b: vectors [n].
        alphas: K coefficients in [0, 1].
        keep: how many entries survive, 0..n.

    Returns:
        The keep-th largest |x| for each coefficient, float32 [K], and the index of the last entry of that magnitude
        that survives, int64 [K]. For keep = 0: +inf and -1.
    """
    if are_plain(a, b) and is_keep(keep, a) and (known := coefficients(alphas, a)) is not None:
        return backend(a).interpolate_threshold(a, b, known, keep)
    check_inputs(a=a, b=b, alphas=alphas)
    check_keep(keep, a.numel())
    return torch.ops.lpk.interpolate_threshold(a, b, numbers("alphas", alphas, torch.float32), keep)


def interpolate_prune(
    a: Tensor,
    b: Tensor,
    alpha: float | Tensor,
    keep: int,
    *,
    threshold: Threshold | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """MagnitudePruning(alpha * a + (1 - alpha) * b): Algorithm 2, line 5.

    Args:
        a, b: vectors [n].
        alpha: coefficient in [0, 1].
        keep: how many entries survive, 0..n.
        threshold: what `interpolate_threshold` returned for this coefficient, a pair (t, j): entry i survives if
            |x_i| > t, or |x_i| = t and i <= j. Without it, it is found first.
        out: where to write; may be `a` or `b` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `a`.
    """
    if (
        are_plain(a, b, out)
        and is_coefficient(alpha, a)
        and is_keep(keep, a)
        and (threshold is None or is_threshold(threshold, a))
    ):
        result = empty_like(a) if out is None else changed(out)
        if threshold is None:
            backend(a).find_and_prune(result, a, b, alpha, keep)
        else:
            backend(a).interpolate_prune(result, a, b, alpha, *threshold)
        return result
    check_inputs(a=a, b=b, alpha=alpha, threshold=threshold, out=out)
    check_keep(keep, a.numel())
    alpha = number("alpha", alpha, torch.float32)
    if threshold is None:
        threshold = torch.ops.lpk.interpolate_threshold(a, b, alpha.reshape(1), keep)
    value, last = threshold_pair(threshold)
    if out is None:
        return torch.ops.lpk.interpolate_prune(a, b, alpha, value, last)
    torch.ops.lpk.interpolate_prune_out(a, b, alpha, value, last, out)
    return out


def interpolate_prune_all(
    a: Tensor,
    b: Tensor,
    alphas: Sequence[float] | Tensor,
    keep: int,
    *,
    thresholds: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`interpolate_prune` for each coefficient, in one pass over a and b, which costs less than one for each.

    Args:
        a, b: vectors [n].
        alphas: K coefficients in [0, 1].
        keep: how many entries survive, 0..n.
        thresholds: what `interpolate_threshold` returned for these coefficients. Without them, they are found first.
        out: where to write, contiguous [K, n]; its memory must be apart from that of `a` and `b`.

    Returns:
        `out`, or a new matrix [K, n] of the dtype of `a`: row k is pruned for coefficient k.
    """
    if (
        are_plain(a, b)
        and is_keep(keep, a)
        and (known := coefficients(alphas, a)) is not None
        and (thresholds is None or are_thresholds(thresholds, a, len(known)))
        and (out is None or are_rows(out, len(known), a, b))
    ):
        rows = empty_rows(a, len(known)) if out is None else changed(out)
        if thresholds is None:
            backend(a).find_and_prune_all(rows, a, b, known, keep)
        else:
            backend(a).interpolate_prune_all(rows, a, b, known, *thresholds)
        return rows
    check_inputs(a=a, b=b, alphas=alphas, thresholds=thresholds, out=out)
    check_keep(keep, a.numel())
    alphas = numbers("alphas", alphas, torch.float32)
    if thresholds is None:
        thresholds = torch.ops.lpk.interpolate_threshold(a, b, alphas, keep)
    values = numbers("thresholds[0]", thresholds[0], torch.float32, alphas.numel())
    last = numbers("thresholds[1]", thresholds[1], torch.int64, alphas.numel())
    if out is None:
        return torch.ops.lpk.interpolate_prune_all(a, b, alphas, values, last)
    torch.ops.lpk.interpolate_prune_all_out(a, b, alphas, values, last, out)
    return out


def pack(a: Tensor, b: Tensor) -> Packed:
    """Sparse vectors made short: what is +0 in both is left out, for all the coefficients that are tried on them.

    An element is kept where a or b has a bit set: -0 is kept, since a -0 that survives pruning stays -0.

    Args:
        a, b: vectors [n] on the CPU.

    Returns:
        The packed vectors, for `interpolate_threshold(packed.a, packed.b, ...)` and `interpolate_prune_packed`.

    Raises:
        NotImplementedError: for tensors that are not on the CPU. Others as for every function.
    """
    check_inputs(a=a, b=b)
    check_on_cpu("pack", a=a, b=b)
    packed_a, packed_b, support, positions = torch.ops.lpk.pack(a, b)
    return Packed(packed_a, packed_b, support, positions, a.numel())


def interpolate_prune_packed(
    packed: Packed,
    alpha: float | Tensor,
    keep: int,
    *,
    threshold: Threshold | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The bits of `interpolate_prune(a, b, alpha, keep)`, from what `pack(a, b)` returned.

    Zeros that survive are not told apart in packed vectors: where there are any (`keep` above m, or a threshold of 0),
    the whole interpolation is written and pruned by `magnitude_prune`, which takes longer and returns the same bits.

    Args:
        packed: two vectors [n], packed.
        alpha: coefficient in [0, 1].
        keep: how many entries survive, 0..n.
        threshold: what `interpolate_threshold(packed.a, packed.b, ...)` returned for this coefficient and this `keep`.
            Without it, it is found first.
        out: where to write, [n]; its memory must be apart from that of `packed`.

    Returns:
        `out`, or a new vector [n] of the dtype of `packed.a`.

    Raises:
        NotImplementedError: for tensors that are not on the CPU.
        ValueError: also where the tensors of `packed` do not belong together.
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"packed is a {type(packed).__name__}; what pack returned is needed")
    *tensors, n = packed
    check_inputs(a=packed.a, b=packed.b, packed=tuple(packed), alpha=alpha, threshold=threshold, out=out)
    check_on_cpu("interpolate_prune_packed", packed=packed.a, out=packed.a if out is None else out)
    check_keep(keep, n)
    alpha = number("alpha", alpha, torch.float32)
    if threshold is None:
        possible = min(keep, packed.a.numel())
        threshold = torch.ops.lpk.interpolate_threshold(packed.a, packed.b, alpha.reshape(1), possible)
    value, last = threshold_pair(threshold)
    if out is None:
        return torch.ops.lpk.interpolate_prune_packed(*tensors, n, alpha, keep, value, last)
    torch.ops.lpk.interpolate_prune_packed_out(*tensors, n, alpha, keep, value, last, out)
    return out


def magnitude_prune(x: Tensor, keep: int, *, out: Tensor | None = None) -> Tensor:
    """x with all but its `keep` largest magnitudes set to +0.

    Args:
        x: vector [n].
        keep: how many entries survive, 0..n.
        out: where to write; may be `x` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `x`.
    """
    if are_plain(x, None, out) and is_keep(keep, x):
        result = empty_like(x) if out is None else changed(out)
        backend(x).find_and_prune(result, x, None, 1.0, keep)
        return result
    check_inputs(x=x, out=out)
    check_keep(keep, x.numel())
    if out is None:
        return torch.ops.lpk.magnitude_prune(x, keep)
    torch.ops.lpk.magnitude_prune_out(x, keep, out)
    return out


def magnitude_mask(x: Tensor, keep: int) -> Tensor:
    """Which entries of x are among its `keep` largest magnitudes.

    Args:
        x: vector [n]; may require a gradient, a mask has none.
        keep: how many entries are True, 0..n.

    Returns:
        Mask, bool [n].
    """
    if isinstance(x, Tensor) and x.requires_grad:
        x = x.detach()
    if are_plain(x) and is_keep(keep, x):
        mask = empty_mask(x)
        backend(x).find_and_mask(mask, x, keep)
        return mask
    check_inputs(x=x)
    check_keep(keep, x.numel())
    return torch.ops.lpk.magnitude_mask(x, keep)


def instruction_set() -> str:
    """The instruction set that the CPU kernels use here: "portable", "avx2" or "avx512". It is the processor's best, or
    the one that the environment variable LPK_CPU names."""
    return _core.instruction_set()


def backends() -> dict[str, str]:
    """Each backend, and whether it runs here or why it does not."""
    no_gpu = None if torch.cuda.is_available() else "no GPU is usable here"
    described = {"cpu": f"runs here: {_core.instruction_set()} (usable: {', '.join(_core.instruction_sets())})"}
    if _core.cuda_compiled:
        described["cuda"] = f"compiled for sm_{_core.cuda_architectures.replace(' ', ', sm_')}; {no_gpu or 'runs here'}"
    else:
        described["cuda"] = "not compiled: nvcc was not found, or LPK_CUDA=0 was set, when lpk was built"
    if importlib.util.find_spec("triton") is None:
        described["triton"] = "not installed"
    else:
        described["triton"] = no_gpu or ("not needed: cuda runs" if _core.cuda_compiled else "runs here")
    return described
