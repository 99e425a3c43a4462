"""Sweeps that narrow each bracket to a single key, the threshold's, by histograms of the keys inside it."""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import indices, is_bad, load, mix, report
from lpk.kernels.threshold import (
    COUNT_BLOCK,
    COUNT_OPTIONS,
    Brackets,
    Vectors,
    add,
    counting_blocks,
    counting_programs,
    locate,
    magnitude_key,
)

SEGMENT = 1024  # bins that one program adds up
COUNTERS = 32  # that share one count, lest every program add to the same one


@triton.jit
def clear_kernel(bins, above, shift, COUNTERS: tl.constexpr, SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr):
    """Zeroes the counts of what is not finished: a bracket's shift is -1 once it is a single key."""
    segment = tl.program_id(0)
    k = tl.program_id(1)
    if tl.load(shift + k) >= 0:
        where = (k.to(tl.int64) * SEGMENTS + segment) * SEGMENT + tl.arange(0, SEGMENT)
        tl.store(bins + where, tl.zeros([SEGMENT], bins.dtype.element_ty))
        if segment == 0:
            tl.store(above + k * COUNTERS + tl.arange(0, COUNTERS), tl.zeros([COUNTERS], above.dtype.element_ty))


# Atomic additions take one element a thread. Were a and b known to be aligned, they would be loaded four a thread, and
# every address of an addition would pass through shared memory.
@triton.jit(do_not_specialize_on_alignment=["a", "b"])
def count_kernel(
    bins, above, a, b, alphas, low, high, shift, tied, pending, first_bad, n, blocks, K,
    HAS_B: tl.constexpr, BIN_COUNT: tl.constexpr, COUNTERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counts the keys above and inside each bracket that is not finished. above: [K, COUNTERS]."""
    if tl.load(pending) == 0:
        return
    one = tl.full([BLOCK], 1, bins.dtype.element_ty)
    above += tl.program_id(0) % COUNTERS
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        i = indices(block, BLOCK)
        of_a, of_b = load(a, b, i, i < n, HAS_B)
        report(first_bad, is_bad(of_a) | is_bad(of_b), block, BLOCK)
        for k in range(K):
            bracket_shift = tl.load(shift + k)
            if bracket_shift >= 0:
                own_bins = bins + k * BIN_COUNT
                ends = tl.load(tied + k)  # 1: the first and the last key of the bracket are counted by block
                bracket_low = tl.load(low + k)
                size = tl.load(high + k) - bracket_low
                key = magnitude_key(mix(of_a, of_b, tl.load(alphas + k), HAS_B)) - bracket_low
                over = key > size - ends
                tl.atomic_add(own_bins + (key >> bracket_shift), one, mask=(key >= ends) & ~over, sem="relaxed")
                count = tl.sum(over.to(tl.int32), 0)
                if ends != 0:
                    at_high = tl.sum((key == size).to(tl.int32), 0)
                    count -= at_high
                    add(own_bins + (size >> bracket_shift), at_high)
                    if size != 0:
                        add(own_bins, tl.sum((key == 0).to(tl.int32), 0))
                add(above + k * COUNTERS, count)


@triton.jit
def add_segments_kernel(sums, bins, shift, SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr):
    """sums [K, SEGMENTS]: those of the bins."""
    segment = tl.program_id(0)
    k = tl.program_id(1)
    if tl.load(shift + k) >= 0:
        row = k.to(tl.int64) * SEGMENTS + segment
        counts = tl.load(bins + row * SEGMENT + tl.arange(0, SEGMENT)).to(tl.int64)
        tl.store(sums + row, tl.sum(counts, 0))


@triton.jit(do_not_specialize=["keep"])
def narrow_kernel(
    low, high, shift, tied, survivors, pending, bins, sums, above, keep,
    KEY_BITS: tl.constexpr, BIN_BITS: tl.constexpr, COUNTERS: tl.constexpr, SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
):  # fmt: skip
    """The bracket becomes the bin that holds the threshold, or all keys if it missed the threshold.

    survivors [K]: how many of the entries in the bracket survive.
    """
    k = tl.program_id(0)
    bracket_shift = tl.load(shift + k)
    if bracket_shift >= 0:
        segments = tl.load(sums + k * SEGMENTS + tl.arange(0, SEGMENTS))
        total = tl.sum(segments, 0)
        rank_above = keep - tl.sum(tl.load(above + k * COUNTERS + tl.arange(0, COUNTERS)), 0)  # 1 is the largest
        tl.store(tied + k, 1)
        if (rank_above >= 1) & (rank_above <= total):
            segment, below = locate(segments, total - rank_above)
            row = (k.to(tl.int64) * SEGMENTS + segment) * SEGMENT
            counts = tl.load(bins + row + tl.arange(0, SEGMENT)).to(tl.int64)
            place, below_here = locate(counts, total - rank_above - below)
            in_bin = tl.sum(tl.where(tl.arange(0, SEGMENT) == place, counts, 0), 0)
            bin_low = tl.load(low + k) + ((segment * SEGMENT + place) << bracket_shift)
            tl.store(low + k, bin_low)
            tl.store(high + k, bin_low + ((1 << bracket_shift) - 1))
            tl.store(survivors + k, rank_above - (total - below - below_here - in_bin))
            tl.store(shift + k, tl.where(bracket_shift == 0, -1, tl.maximum(bracket_shift - BIN_BITS, 0)))
            tl.atomic_add(pending, -1, mask=bracket_shift == 0, sem="relaxed")
        else:
            tl.store(low + k, 0)
            tl.store(high + k, (1 << KEY_BITS) - 1)
            tl.store(shift + k, KEY_BITS - BIN_BITS)


def narrow(brackets: Brackets, vectors: Vectors, keep: int, bin_bits: int, first_bad: Tensor) -> Tensor:
    """Narrows the brackets in place; how many of the entries of each threshold's magnitude survive, int64 [K]."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    segments = (1 << bin_bits) // SEGMENT
    survivors = torch.empty(K, dtype=torch.int64, device=device)
    above = torch.empty(K, COUNTERS, dtype=torch.int64, device=device)
    pending = torch.full((1,), K, dtype=torch.int32, device=device)
    bins = torch.empty(K << bin_bits, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
    sums = torch.empty(K, segments, dtype=torch.int64, device=device)
    segmented = {"SEGMENTS": segments, "SEGMENT": SEGMENT}
    bits = {"KEY_BITS": vectors.key_bits, "BIN_BITS": bin_bits}
    sweeps = 1 + math.ceil(vectors.key_bits / bin_bits) if keep else 1  # the first bracket, and all keys if it missed
    for _ in range(sweeps):
        clear_kernel[(segments, K)](bins, above, brackets.shift, COUNTERS=COUNTERS, **segmented)
        count_kernel[counting_programs(n)](
            bins, above, *vectors.arguments, *brackets, pending, first_bad, n, counting_blocks(n), K,
            HAS_B=vectors.b is not None, BIN_COUNT=1 << bin_bits, COUNTERS=COUNTERS, BLOCK=COUNT_BLOCK,
            **COUNT_OPTIONS,
        )  # fmt: skip
        add_segments_kernel[(segments, K)](sums, bins, brackets.shift, **segmented)
        narrow_kernel[(K,)](
            *brackets, survivors, pending, bins, sums, above, keep, **bits, COUNTERS=COUNTERS, **segmented
        )
    return survivors


def bin_bits(n: int, key_bits: int) -> int:
    """So many bins that one sweep usually does, and so few that they weigh little beside the vectors."""
    return min(max(n.bit_length() - 7, 11), 20, key_bits)
