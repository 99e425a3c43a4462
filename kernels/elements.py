"""A block of elements of a flat vector: the arithmetic that every backend shares."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 4096  # elements that a program takes at once
WARPS = 8

# Products and sums stay apart where the formula has them apart: alone fma() is fused.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}
FOUR_WARPS = OPTIONS | {"num_warps": 4}


@triton.jit
def indices(block, BLOCK: tl.constexpr):
    """Where the elements of a block stand; 64 bits, as n may exceed 2^31."""
    return tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load(a, b, i, inside, HAS_B: tl.constexpr):
    """The elements of a and b at i, 0 where not `inside`; those of a twice if there is no b."""
    of_a = tl.load(a + i, mask=inside, other=0.0)
    of_b = of_a
    if HAS_B:
        of_b = tl.load(b + i, mask=inside, other=0.0)
    return of_a, of_b


@triton.jit
def mix(a, b, alpha, HAS_B: tl.constexpr):
    """x = fma(alpha, a, beta * b) in float32, rounded to the dtype of a; a itself if there is no b."""
    x = a
    if HAS_B:
        x = tl.fma(alpha, a.to(tl.float32), (1.0 - alpha) * b.to(tl.float32)).to(a.dtype)
    return x


@triton.jit
def survives(x, i, value, last):
    """|x| > value, or |x| = value up to position `last`."""
    magnitude = tl.abs(x.to(tl.float32))
    return (magnitude > value) | ((magnitude == value) & (i <= last))


@triton.jit
def is_bad(x):
    """NaN or infinite."""
    return ~(tl.abs(x.to(tl.float32)) < float("inf"))


@triton.jit
def report(first_bad, bad, block, BLOCK: tl.constexpr):
    """Lowers the status word to where the first bad element of a block stands."""
    if tl.max(bad.to(tl.int32), 0) > 0:
        first = tl.min(tl.where(bad, tl.arange(0, BLOCK), BLOCK), 0)
        tl.atomic_min(first_bad, tl.cast(block, tl.int64) * BLOCK + first, sem="relaxed")
