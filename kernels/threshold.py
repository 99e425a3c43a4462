"""What the steps of the search for thresholds share: its vectors, its memory on the device, keys, and counts."""
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_COEFFICIENTS = 16  # of one sweep; more are done in turns
BLOCK = 2048  # elements that a program counts at once

# Programs for each multiprocessor, each of which takes one block after another: about as many as it runs at once, and
# fewer of those that seldom have anything to do.
PROGRAMS, FALLBACK_PROGRAMS = 8, 2
COARSE_BITS, FINE_BITS = 8, 9  # of a key: bins of a sample
BIN_BITS = 10  # of an entry inside a bracket

MOST = tl.constexpr(MOST_COEFFICIENTS)

# Rows of the state, int64 [ROWS, MOST_COEFFICIENTS]: numbers that the device keeps for each coefficient.
FIRST = tl.constexpr(0)  # the bracket: its first key, not zero's,
END = tl.constexpr(1)  # and the key behind its last one; what is at most FIRST leaves none
WIDTH = tl.constexpr(2)  # a number for all: of the widest bracket the bits of the last one's distance from the first
SHIFT = tl.constexpr(3)  # the bin of an entry inside is its word without so many bits
BELOW = tl.constexpr(4)  # entries below the first key, what is past the vectors' end in their last block among them
STATUS = tl.constexpr(5)
KEY = tl.constexpr(6)  # the key, or what is known of its highest bits
RANK = tl.constexpr(7)  # the threshold's among the entries of its bin or key, from 1: the one that survives longest
WANTED = tl.constexpr(8)  # the bin in the bracket that holds the threshold; -1: none does
TICKETS = tl.constexpr(9)  # of the programs that look for a coefficient's bracket
MARKED = tl.constexpr(10)  # a number for all: the entries that may be inside of some bracket,
LISTED_COUNT = tl.constexpr(11)  # and those of wanted bins
DONE = tl.constexpr(12)  # tickets of the kernels that follow, one for each
ROWS = 13

# What is known of a threshold.
LISTED = tl.constexpr(1)  # it is inside its bracket, in the wanted bin
GUESSED = tl.constexpr(2)  # its key is the one beside the bracket, perhaps
TIED = tl.constexpr(3)  # its key is known, and how many entries of each block have it
UNKNOWN = tl.constexpr(4)  # it is to be found by histograms of all entries
KNOWN = tl.constexpr(5)  # its key is known


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

    def programs(self, block: int, each: int) -> tuple[int]:
        """A grid that takes the vectors by blocks of so many entries: `each` programs a multiprocessor, or fewer."""
        return (min(triton.cdiv(self.a.numel(), block), each * multiprocessors(self.a.device)),)


class Counts(NamedTuple):
    """What is counted on the device, all zero to begin with; for each of MOST_COEFFICIENTS.

    state: int64 [ROWS, MOST_COEFFICIENTS].
    coarse, fine: of a sample, int32 [.., 2^COARSE_BITS] and, for both ends of a bracket, [.., 2, 2^FINE_BITS].
    bins: of the entries inside a bracket, int32 [.., 2^BIN_BITS].
    """

    state: Tensor
    coarse: Tensor
    fine: Tensor
    bins: Tensor


def counts(device: torch.device) -> Counts:
    sizes = [2 * ROWS, 1 << COARSE_BITS, 2 << FINE_BITS, 1 << BIN_BITS]
    numbers = torch.zeros(sum(sizes) * MOST_COEFFICIENTS, dtype=torch.int32, device=device)
    state, coarse, fine, bins = numbers.split([size * MOST_COEFFICIENTS for size in sizes])
    return Counts(state.view(torch.int64), coarse, fine, bins)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def magnitude_key(x):
    """The bits of |x|, as int32: 15 of them for the 16-bit dtypes, 31 for float32."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def magnitude(key, vector):
    """The number that has this key in the dtype of a vector, as float32."""
    if vector.dtype.element_ty.primitive_bitwidth == 16:
        return key.to(tl.int16).to(vector.dtype.element_ty, bitcast=True).to(tl.float32)
    else:
        return key.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def backward(i, n, index_bits):
    """Where an entry stands, counted from the vector's end, in the highest of 32 bits."""
    return ((n - 1 - i).to(tl.int64) << (32 - index_bits)).to(tl.uint32)


@triton.jit
def word_of(distance, backward):
    """A key's distance from the bracket's first one, and after it the place from behind: of two entries inside the one
    that survives longer has the larger word."""
    return (distance.to(tl.int64) << 32) | backward.to(tl.int64)


@triton.jit
def locate(counts, rank, BINS: tl.constexpr):
    """In which bin the rank-th entry from above is, from 1; how many this holds, and the entry's rank among them. Zeros
    if there are too few entries."""
    through = tl.cumsum(counts, 0, reverse=True)
    here = (through - counts < rank) & (rank <= through)
    bin = tl.sum(tl.where(here, tl.arange(0, BINS), 0), 0)
    return bin, tl.sum(tl.where(here, counts, 0), 0), tl.sum(tl.where(here, rank - (through - counts), 0), 0)


@triton.jit
def some_are(status, state):
    """Whether there is a coefficient of which so much is known."""
    return tl.max((tl.load(state + STATUS * MOST + tl.arange(0, MOST)) == status).to(tl.int32), 0) > 0


@triton.jit
def last_of(tickets, programs):
    """Whether a program is the last one to come here; if so, it sees what the others have written."""
    tl.debug_barrier()
    return tl.atomic_add(tickets, 1, sem="acq_rel") == programs - 1
