"""The interpolation with what does not survive its threshold set to +0, for one coefficient or for many in one pass."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, indices, is_bad, load, mix, report, survives


@triton.jit
def interpolate_prune_kernel(out, a, b, alpha, value, last, first_bad, n, HAS_B: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    i = indices(block, BLOCK)
    inside = i < n
    of_a, of_b = load(a, b, i, inside, HAS_B)
    x = mix(of_a, of_b, tl.load(alpha), HAS_B)
    report(first_bad, is_bad(x) & inside, block, BLOCK)
    zero = tl.zeros([BLOCK], x.dtype)
    tl.store(out + i, tl.where(survives(x, i, tl.load(value), tl.load(last)), x, zero), mask=inside)


# Blocks of a and b that stay in the cache while all rows are written for them, one after the other: a program that
# wrote its block of all rows would have the device write to thousands of places at once.
TOGETHER = 512


@triton.jit(do_not_specialize=["blocks", "K"])
def interpolate_prune_all_kernel(
    out, a, b, alphas, values, lasts, first_bad, n, blocks, K, TOGETHER: tl.constexpr, BLOCK: tl.constexpr
):
    """A program for each block of each row."""
    program = tl.program_id(0)
    first = program // (TOGETHER * K) * TOGETHER
    together = tl.minimum(blocks - first, TOGETHER)
    k = (program - first * K) // together
    block = first + (program - first * K) % together
    i = indices(block, BLOCK)
    inside = i < n
    of_a, of_b = load(a, b, i, inside, True)
    if k == 0:
        report(first_bad, is_bad(of_a) | is_bad(of_b), block, BLOCK)
    x = mix(of_a, of_b, tl.load(alphas + k), True)
    zero = tl.zeros([BLOCK], x.dtype)
    survivor = survives(x, i, tl.load(values + k), tl.load(lasts + k))
    tl.store(out + tl.cast(k, tl.int64) * n + i, tl.where(survivor, x, zero), mask=inside)


def interpolate_prune(
    out: Tensor, a: Tensor, b: Tensor | None, alpha: Tensor, value: Tensor, last: Tensor, first_bad: Tensor
) -> None:
    """out = alpha * a + (1 - alpha) * b where it survives the threshold, +0 elsewhere (Algorithm 2, line 5).

    Args:
        out, a, b: vectors [n] of float32, float16 or bfloat16; `out` may be `a` or `b`. Without b, x is a.
        alpha: float32 [1].
        value, last: float32 [1] and int64 [1]; entry i survives if |x_i| > value, or |x_i| = value and i <= last.
        first_bad: int64 [1], lowered to the index of the first x that is NaN or infinite.
    """
    n = a.numel()
    if n == 0:
        return
    interpolate_prune_kernel[(triton.cdiv(n, BLOCK),)](
        out, a, a if b is None else b, alpha, value, last, first_bad, n, HAS_B=b is not None, BLOCK=BLOCK, **OPTIONS
    )


def interpolate_prune_all(
    out: Tensor, a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor, first_bad: Tensor
) -> None:
    """`interpolate_prune` for each coefficient: its k-th row for the k-th one.

    Args:
        out: [K, n] of the vectors' dtype, apart from them.
        a, b: vectors [n] of float32, float16 or bfloat16.
        alphas, values, last: float32 [K], float32 [K] and int64 [K].
        first_bad: int64 [1], lowered to the index of the first element of a or b that is NaN or infinite.
    """
    n, K = a.numel(), alphas.numel()
    if n == 0 or K == 0:
        return
    blocks = triton.cdiv(n, BLOCK)
    interpolate_prune_all_kernel[(blocks * K,)](
        out, a, b, alphas, values, last, first_bad, n, blocks, K, TOGETHER=TOGETHER, BLOCK=BLOCK, **OPTIONS
    )
