"""Where many entries have the threshold's key: how many in each block, and the last one of them that survives."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lpk.kernels.elements import indices, load, mix
from lpk.kernels.threshold import KEY, MOST, RANK, STATUS, TIED, UNKNOWN, magnitude, magnitude_key, some_are

TIES_CHUNK = 2048  # blocks whose counts are looked at together


@triton.jit
def count_ties(ties, status, state, a, b, alphas, n, blocks, K, HAS_B: tl.constexpr, BLOCK: tl.constexpr):
    """ties [K, blocks]: how many entries of a block have the key of a coefficient of this status, and, above 16 bits,
    how many have a larger one."""
    if some_are(status, state):
        for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
            i = indices(block, BLOCK)
            x_a, x_b = load(a, b, i, i < n, HAS_B)
            for k in range(K):
                if tl.load(state + STATUS * MOST + k) == status:
                    sought = tl.load(state + KEY * MOST + k).to(tl.int32)
                    key = magnitude_key(mix(x_a, x_b, tl.load(alphas + k), HAS_B))
                    one = (i < n).to(tl.int32)
                    found = tl.where(key == sought, one, 0) + tl.where(key > sought, one << 16, 0)
                    tl.store(ties + tl.cast(k, tl.int64) * blocks + block, tl.sum(found, 0))


@triton.jit
def confirm(state, ties, blocks, keep, CHUNK: tl.constexpr):
    """Finds the threshold's rank among the entries of the guessed key; false if that is not the threshold's key."""
    above = tl.full([], 0, tl.int64)
    tied = tl.full([], 0, tl.int64)
    for start in range(0, blocks, CHUNK):
        block = start + tl.arange(0, CHUNK)
        found = tl.load(ties + block, mask=block < blocks, other=0)
        above += tl.sum((found >> 16).to(tl.int64), 0)
        tied += tl.sum((found & 0xFFFF).to(tl.int64), 0)
    rank = keep - above
    right = (rank > 0) & (rank <= tied)
    tl.store(state + STATUS * MOST, tl.where(right, TIED, UNKNOWN))
    tl.store(state + RANK * MOST, tl.where(right, rank, keep))
    tl.store(state + KEY * MOST, 0, mask=~right)
    return right


@triton.jit
def find(
    value, last, state, ties, a, b, alpha, n, blocks, HAS_B: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):
    """The last survivor among the entries of a key."""
    sought = tl.load(state + KEY * MOST).to(tl.int32)
    rank = tl.load(state + RANK * MOST)
    chunk = tl.full([], 0, tl.int32)
    in_chunk = tl.full([], 0, tl.int32)
    for start in range(0, blocks, CHUNK):
        block = start + tl.arange(0, CHUNK)
        count = tl.sum(tl.load(ties + block, mask=block < blocks, other=0) & 0xFFFF, 0)
        here = (rank > 0) & (rank <= count)
        chunk = tl.where(here, start, chunk)
        in_chunk = tl.where(here, rank, in_chunk).to(tl.int32)
        rank -= count
    block = chunk + tl.arange(0, CHUNK)
    tied = tl.load(ties + block, mask=block < blocks, other=0) & 0xFFFF
    through = tl.cumsum(tied, 0)
    here = (through - tied < in_chunk) & (in_chunk <= through)
    in_block = tl.sum(tl.where(here, in_chunk - (through - tied), 0), 0)
    i = indices(tl.sum(tl.where(here, block, 0), 0), BLOCK)
    x_a, x_b = load(a, b, i, i < n, HAS_B)
    equal = (magnitude_key(mix(x_a, x_b, tl.load(alpha), HAS_B)) == sought) & (i < n)
    found = equal & (tl.cumsum(equal.to(tl.int32), 0) == in_block)
    tl.store(value, magnitude(sought, a))
    tl.store(last, tl.sum(tl.where(found, i, 0), 0))
