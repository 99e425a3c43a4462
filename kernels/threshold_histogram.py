"""Where a bracket does not tell, or holds too much: the threshold's key, bits by bits, by histograms of all entries."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lpk.kernels.elements import indices, load, mix
from lpk.kernels.threshold import KEY, KNOWN, MOST, RANK, STATUS, UNKNOWN, last_of, locate, magnitude_key, some_are

ROUND_BITS = 16  # of a key, that one round finds
HISTOGRAM_CHUNK = 1024  # bins that are looked at together


@triton.jit
def clear(bins, BINS: tl.constexpr, CHUNK: tl.constexpr):
    for start in range(0, BINS, CHUNK):
        tl.store(bins + start + tl.arange(0, CHUNK), tl.zeros([CHUNK], bins.dtype.element_ty))


@triton.jit
def locate_in_memory(bins, rank, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """The bin that holds the rank-th entry from above, and its rank there. The first one if the others hold too few."""
    chunk = tl.full([], 0, tl.int32)
    in_chunk = tl.full([], 0, tl.int64)
    for step in range(BINS // CHUNK):
        start = BINS - (step + 1) * CHUNK
        count = tl.sum(tl.load(bins + start + tl.arange(0, CHUNK)).to(tl.int64), 0)
        here = (rank > 0) & (rank <= count)
        chunk = tl.where(here, start, chunk)
        in_chunk = tl.where(here, rank, in_chunk)
        rank -= count
    bin, _, in_bin = locate(tl.load(bins + chunk + tl.arange(0, CHUNK)).to(tl.int64), in_chunk, CHUNK)
    return tl.where(in_chunk > 0, chunk + bin, 0), tl.where(in_chunk > 0, in_bin, rank)


@triton.jit
def narrow(
    state, tickets, bins, a, b, alphas, n, blocks, K,
    HAS_B: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The next BITS bits of each key that is unknown, those above SHIFT lower ones. bins [K, BINS] are zero, and again
    when it is done.

    Zeros are not counted: they would be many in one place, and are the last ones anyway.
    """
    if some_are(UNKNOWN, state):
        for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
            i = indices(block, BLOCK)
            x_a, x_b = load(a, b, i, i < n, HAS_B)
            for k in range(K):
                if tl.load(state + STATUS * MOST + k) == UNKNOWN:
                    key = magnitude_key(mix(x_a, x_b, tl.load(alphas + k), HAS_B))
                    alike = ((key >> SHIFT) >> BITS) == tl.load(state + KEY * MOST + k).to(tl.int32)
                    place = bins + k * BINS + ((key >> SHIFT) & ((1 << BITS) - 1))
                    one = tl.full([BLOCK], 1, bins.dtype.element_ty)
                    tl.atomic_add(place, one, mask=alike & (key > 0), sem="relaxed")
        if last_of(tickets, tl.num_programs(0)):
            for k in range(K):
                own = state + k
                if tl.load(own + STATUS * MOST) == UNKNOWN:
                    bin, rank = locate_in_memory(bins + k * BINS, tl.load(own + RANK * MOST), BINS, CHUNK)
                    tl.store(own + KEY * MOST, (tl.load(own + KEY * MOST) << BITS) | bin)
                    tl.store(own + RANK * MOST, rank)
                    if SHIFT == 0:
                        tl.store(own + STATUS * MOST, KNOWN)
                    clear(bins + k * BINS, BINS, CHUNK)
