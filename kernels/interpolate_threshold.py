"""For each coefficient the keep-th largest |x|, and the index of the last entry of that magnitude that survives.

A magnitude's key is its bit pattern, which orders as the magnitude does. For each coefficient:

1. A fixed-seed sample brackets the threshold's key: low <= key <= high, but for bad luck (SIGMAS).
2. A sweep over a and b counts the keys above the bracket, and those inside it in equal bins. One bin holds the
   threshold; it is the next bracket. If the sample misled and no bin does, the next bracket is all keys. As many sweeps
   are launched as this could take; once each bin is a single key, the remaining ones return at once.
3. A last sweep counts the threshold's key in each group of blocks; the one that holds the last survivor is searched.

Keys inside a bracket are counted one by one with atomic additions: a few percent, seldom the same bin. Where a bracket
ends in a heavy tie (zeros, constant vectors), its ends are counted by block. Sums of whole numbers do not depend on the
order, so the result never varies.

What is past a vector's end in its last block reads as zeros: they are the lowest magnitudes, and of zeros the last, so
no threshold changes.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, device_of, indices, is_bad, load, mix, report

SAMPLE = 1 << 15
SIGMAS = 4.5  # half the bracket, in standard deviations of a rank in the sample; kBracketSigmas in csrc/bracket.h
SEED = 0
SEGMENT = 1024  # bins that one program adds up
GROUPS = 4096  # of blocks, in which the threshold's key is counted
COUNTERS = 32  # that share one count, lest every program add to the same one
HEAVY = 8  # entries of a sample with one key: it is a heavy tie
MOST_COEFFICIENTS = 16  # of one sweep; more are done in turns
COUNT_BLOCK = 2048  # elements that a program counts at once
COUNT_OPTIONS = OPTIONS | {"num_warps": 4}
MOST_PROGRAMS = 4096  # that count; each takes one block after another. Those with nothing to do cost time as well
BRACKET_WARPS = 32  # one program bisects the whole sample


@triton.jit
def magnitude_key(x):
    """The bits of |x|, as int32: 15 of them for the 16-bit dtypes, 31 for float32."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


# Numbers that change from call to call are not specialized, lest a new one be compiled for.
@triton.jit(do_not_specialize=["count"])
def sample_kernel(
    keys, a, b, alphas, n, count, HAS_B: tl.constexpr, SAMPLE: tl.constexpr, SEED: tl.constexpr, BLOCK: tl.constexpr
):
    """keys [K, SAMPLE]: those of `count` entries, one from each of as many equal stretches."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1)
    begin = s.to(tl.int64) * n // count
    width = (s + 1).to(tl.int64) * n // count - begin
    jitter = (tl.rand(SEED, s) * width.to(tl.float32)).to(tl.int64)  # a stride would alias with channels
    i = begin + tl.minimum(jitter, width - 1)
    inside = s < count
    of_a, of_b = load(a, b, i, inside, HAS_B)
    tl.store(keys + k * SAMPLE + s, magnitude_key(mix(of_a, of_b, tl.load(alphas + k), HAS_B)), mask=inside)


@triton.jit(do_not_specialize=["upper", "lower"])
def bracket_kernel(
    keys, low, high, shift, tied, upper, lower,
    SAMPLE: tl.constexpr, HEAVY: tl.constexpr, KEY_BITS: tl.constexpr, BIN_BITS: tl.constexpr,
):  # fmt: skip
    """The upper-th and the lower-th largest key of a sample, by bisection; past either end, the extreme keys."""
    k = tl.program_id(0)
    key = tl.load(keys + k * SAMPLE + tl.arange(0, SAMPLE))
    high_key = k * 0
    low_key = k * 0
    for step in range(KEY_BITS):
        bit = 1 << (KEY_BITS - 1 - step)
        # Two counts of at most SAMPLE < 2^16 each, in one sum.
        counts = tl.sum((key >= (high_key | bit)).to(tl.uint32) + ((key >= (low_key | bit)).to(tl.uint32) << 16), 0)
        high_key = tl.where((counts & 0xFFFF).to(tl.int32) >= upper, high_key | bit, high_key)
        low_key = tl.where((counts >> 16).to(tl.int32) >= lower, low_key | bit, low_key)
    bins_shift = k * 0
    for step in range(KEY_BITS - BIN_BITS):
        bins_shift += (((high_key - low_key) >> (BIN_BITS + step)) > 0).to(tl.int32)
    at_ends = tl.sum(((key == low_key) | (key == high_key)).to(tl.int32), 0)
    tl.store(low + k, low_key)
    tl.store(high + k, high_key)
    tl.store(shift + k, bins_shift)
    tl.store(tied + k, (at_ends > HEAVY).to(tl.int32))


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


@triton.jit
def add(counter, count):
    """Adds to a counter; leaves it alone where there is nothing to add."""
    tl.atomic_add(counter, count.to(counter.dtype.element_ty), mask=count > 0, sem="relaxed")


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


@triton.jit
def locate(counts, rank):
    """In which part the rank-th entry is, counted from 0 and from below, and how many lie in the parts below it."""
    through = tl.cumsum(counts, 0)
    below = through <= rank
    return tl.sum(below.to(tl.int32), 0), tl.sum(tl.where(below, counts, 0), 0)


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


@triton.jit
def is_at(a, b, alpha, value, HAS_B: tl.constexpr):
    """Which entries have this magnitude."""
    return tl.abs(mix(a, b, alpha, HAS_B).to(tl.float32)) == value


@triton.jit
def count_equal_kernel(
    counts, a, b, alphas, values, n, blocks, group_blocks, K,
    HAS_B: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """counts [K, GROUPS]: the entries of the threshold's magnitude in each group of blocks, added to what is there."""
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        i = indices(block, BLOCK)
        of_a, of_b = load(a, b, i, i < n, HAS_B)
        own_counts = counts + block // group_blocks
        for k in range(K):
            equal = is_at(of_a, of_b, tl.load(alphas + k), tl.load(values + k), HAS_B)
            add(own_counts + k * GROUPS, tl.sum(equal.to(tl.int32), 0))


@triton.jit
def find_kernel(
    last, counts, a, b, alphas, values, survivors, n, group_size,
    HAS_B: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """last [K]: where the last survivor of the threshold's magnitude stands; counts [K, GROUPS] tell in which group."""
    k = tl.program_id(0)
    rank = tl.load(survivors + k)
    group, before = locate(tl.load(counts + k * GROUPS + tl.arange(0, GROUPS)).to(tl.int64), rank - 1)
    begin = group.to(tl.int64) * group_size
    found = begin * 0
    for start in range(begin, tl.minimum(begin + group_size, n), BLOCK):
        i = start + tl.arange(0, BLOCK)
        of_a, of_b = load(a, b, i, i < n, HAS_B)
        equal = is_at(of_a, of_b, tl.load(alphas + k), tl.load(values + k), HAS_B)
        place = before + tl.cumsum(equal.to(tl.int32), 0)
        found += tl.sum(tl.where(equal & (place == rank), i, 0), 0)
        before += tl.sum(equal.to(tl.int32), 0)
    tl.store(last + k, found)


def interpolate_threshold(
    a: Tensor, b: Tensor | None, alphas: Tensor, keep: int, first_bad: Tensor
) -> tuple[Tensor, Tensor]:
    """Where `interpolate_prune` cuts, for each coefficient.

    Args:
        a, b: vectors [n] of float32, float16 or bfloat16. Without b, x is a.
        alphas: coefficients, float32 [K].
        keep: how many entries survive, 0..n.
        first_bad: int64 [1], lowered to the index of the first x that is NaN or infinite.

    Returns:
        The keep-th largest |x|, float32 [K], and the index of the last entry of that magnitude that survives,
        int64 [K]. For keep = 0: +inf and -1. If an x is NaN or infinite, numbers without a meaning.
    """
    if a.numel() == 0 or alphas.numel() == 0:
        return _nothing_survives(alphas)
    with device_of(a):
        found = [_select(a, b, some, keep, first_bad) for some in alphas.split(MOST_COEFFICIENTS)]
    if keep == 0:
        return _nothing_survives(alphas)
    values, last = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True))
    return values, last


def _nothing_survives(alphas: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(alphas, math.inf), torch.full_like(alphas, -1, dtype=torch.int64)


def _magnitude(key: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float32:
        return key.view(torch.float32)
    return key.to(torch.int16).view(dtype).to(torch.float32)


def _sample_ranks(n: int, keep: int) -> tuple[int, int, int]:
    """The size of the sample, and the ranks in it, from the top, between which the keep-th largest should lie."""
    count = min(n, SAMPLE)
    if count == n:
        return count, keep, keep
    expected = count * (keep / n)
    margin = SIGMAS * math.sqrt(expected * (1.0 - keep / n)) + 2.0
    return count, math.floor(expected - margin), math.ceil(expected + margin)


def _bin_bits(n: int, key_bits: int) -> int:
    """So many bins that one sweep usually does, and so few that they weigh little beside the vectors."""
    return min(max(n.bit_length() - 7, 11), 20, key_bits)


def _select(a: Tensor, b: Tensor | None, alphas: Tensor, keep: int, first_bad: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold, float32 [K], and the index of the last survivor of that magnitude, int64 [K]."""
    n, K, device = a.numel(), alphas.numel(), a.device
    key_bits = 31 if a.dtype == torch.float32 else 15
    bin_bits = _bin_bits(n, key_bits)
    segments = (1 << bin_bits) // SEGMENT
    count, upper, lower = _sample_ranks(n, keep)
    vectors = a, a if b is None else b, alphas
    has_b = b is not None
    blocks = triton.cdiv(n, COUNT_BLOCK)
    group_blocks = triton.cdiv(blocks, GROUPS)
    programs = (min(blocks, MOST_PROGRAMS),)

    keys = torch.full((K, SAMPLE), -1, dtype=torch.int32, device=device)
    low, high, shift, tied = torch.empty(4, K, dtype=torch.int32, device=device)
    survivors, last = torch.empty(2, K, dtype=torch.int64, device=device)
    above = torch.empty(K, COUNTERS, dtype=torch.int64, device=device)
    pending = torch.full((1,), K, dtype=torch.int32, device=device)
    bins = torch.empty(K << bin_bits, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
    sums = torch.empty(K, segments, dtype=torch.int64, device=device)
    segmented = {"SEGMENTS": segments, "SEGMENT": SEGMENT}
    bits = {"KEY_BITS": key_bits, "BIN_BITS": bin_bits}

    sample_kernel[(triton.cdiv(count, 256), K)](
        keys, *vectors, n, count, HAS_B=has_b, SAMPLE=SAMPLE, SEED=SEED, BLOCK=256, **OPTIONS
    )
    bracket_kernel[(K,)](
        keys, low, high, shift, tied, upper, lower, SAMPLE=SAMPLE, HEAVY=HEAVY, **bits, num_warps=BRACKET_WARPS
    )
    sweeps = 1 + math.ceil(key_bits / bin_bits) if keep else 1  # the first bracket, and all keys if it missed
    for _ in range(sweeps):
        clear_kernel[(segments, K)](bins, above, shift, COUNTERS=COUNTERS, **segmented)
        count_kernel[programs](
            bins, above, *vectors, low, high, shift, tied, pending, first_bad, n, blocks, K,
            HAS_B=has_b, BIN_COUNT=1 << bin_bits, COUNTERS=COUNTERS, BLOCK=COUNT_BLOCK, **COUNT_OPTIONS,
        )  # fmt: skip
        add_segments_kernel[(segments, K)](sums, bins, shift, **segmented)
        narrow_kernel[(K,)](
            low, high, shift, tied, survivors, pending, bins, sums, above, keep, **bits, COUNTERS=COUNTERS, **segmented
        )
    values = _magnitude(low, a.dtype)
    if keep:
        counts = torch.zeros(K, GROUPS, dtype=torch.int32, device=device)
        count_equal_kernel[programs](
            counts, *vectors, values, n, blocks, group_blocks, K,
            HAS_B=has_b, GROUPS=GROUPS, BLOCK=COUNT_BLOCK, **COUNT_OPTIONS,
        )  # fmt: skip
        find_kernel[(K,)](
            last, counts, *vectors, values, survivors, n, group_blocks * COUNT_BLOCK,
            HAS_B=has_b, GROUPS=GROUPS, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip
    return values, last
