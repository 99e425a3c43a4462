"""What the steps of the search for thresholds share: its vectors and brackets, keys, and counts of them."""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import OPTIONS

COUNT_BLOCK = 2048  # elements that a program counts at once
COUNT_OPTIONS = OPTIONS | {"num_warps": 4}
MOST_PROGRAMS = 4096  # that count; each takes one block after another. Those with nothing to do cost time as well


class Vectors(NamedTuple):
    """What is interpolated: vectors [n], and coefficients [K]. Without b, x is a."""

    a: Tensor
    b: Tensor | None
    alphas: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the kernels take them, beside HAS_B."""
        return self.a, self.a if self.b is None else self.b, self.alphas

    @property
    def key_bits(self) -> int:
        return 31 if self.a.dtype == torch.float32 else 15


class Brackets(NamedTuple):
    """Keys between which each coefficient's threshold lies, int32 [K], in the order of the kernels' arguments.

    low, high: the first and the last key.
    shift: a key's bin is its distance from `low` without so many low bits; -1: the bracket is a single key.
    tied: 1 where the first and the last key are counted by block.
    """

    low: Tensor
    high: Tensor
    shift: Tensor
    tied: Tensor


def counting_blocks(n: int) -> int:
    """How many blocks are counted in n entries."""
    return triton.cdiv(n, COUNT_BLOCK)


def counting_programs(n: int) -> tuple[int]:
    """The grid of a kernel that counts."""
    return (min(counting_blocks(n), MOST_PROGRAMS),)


@triton.jit
def magnitude_key(x):
    """The bits of |x|, as int32: 15 of them for the 16-bit dtypes, 31 for float32."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def add(counter, count):
    """Adds to a counter; leaves it alone where there is nothing to add."""
    tl.atomic_add(counter, count.to(counter.dtype.element_ty), mask=count > 0, sem="relaxed")


@triton.jit
def locate(counts, rank):
    """In which part the rank-th entry is, counted from 0 and from below, and how many lie in the parts below it."""
    through = tl.cumsum(counts, 0)
    below = through <= rank
    return tl.sum(below.to(tl.int32), 0), tl.sum(tl.where(below, counts, 0), 0)
