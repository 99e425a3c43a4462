"""For each coefficient the keep-th largest |x|, and the index of the last entry of that magnitude that survives.

A magnitude's key is its bit pattern, which orders as the magnitude does. For each coefficient:

1. A fixed-seed sample brackets the threshold's key: low <= key <= high, with a certainty of 4 sigma.
2. A sweep over a and b counts the keys above the bracket, and those inside it in equal bins. One bin holds the
   threshold; it is the next bracket. If the sample misled and no bin does, the next bracket is all keys. As many sweeps
   are launched as this could take; once each bin is a single key, the remaining ones return at once.
3. A sweep counts the entries of the threshold's magnitude in each block, and the block that holds the last survivor
   is searched for it.

Only keys strictly inside a bracket are counted one by one with atomic additions: a few percent, seldom the same bin.
Its ends, where the heavy ties are (zeros, constant vectors), are counted by block. Sums of whole numbers do not depend
on the order, so the result never varies.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, device_of, indices, load, mix, report

SAMPLE = 1 << 14
SEED = 0
SEGMENT = 1024  # bins that one program adds up
COUNT_BLOCK = 2048  # elements that a program counts at once: what it remembers of each must fit its registers
BRACKET_WARPS = 32  # one program bisects the whole sample
FINISHED = -1  # the shift of a bracket that is a single key whose count is known

_FINISHED = tl.constexpr(FINISHED)
_SEED = tl.constexpr(SEED)


@triton.jit
def magnitude_key(x):
    """The bits of |x|, as int32: 15 of them for the 16-bit dtypes, 31 for float32."""
    if x.dtype.primitive_bitwidth == 16:
        return x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


# Numbers that change from call to call are not specialized, lest a new one be compiled for.
@triton.jit(do_not_specialize=["count"])
def sample_kernel(keys, a, b, alphas, n, count, SAMPLE: tl.constexpr, BLOCK: tl.constexpr):
    """keys [K, SAMPLE]: those of `count` entries, one from each of as many equal stretches."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1)
    begin = s.to(tl.int64) * n // count
    width = (s + 1).to(tl.int64) * n // count - begin
    jitter = (tl.rand(_SEED, s) * width.to(tl.float32)).to(tl.int64)  # a stride would alias with channels
    i = begin + tl.minimum(jitter, width - 1)
    inside = s < count
    x = mix(load(a, i, inside), load(b, i, inside), tl.load(alphas + k))
    tl.store(keys + k * SAMPLE + s, magnitude_key(x), mask=inside)


@triton.jit(do_not_specialize=["upper", "lower"])
def bracket_kernel(
    keys, low, high, shift, upper, lower, SAMPLE: tl.constexpr, KEY_BITS: tl.constexpr, BIN_BITS: tl.constexpr
):
    """The upper-th and the lower-th largest key of a sample, by bisection; past either end, the extreme keys."""
    k = tl.program_id(0)
    key = tl.load(keys + k * SAMPLE + tl.arange(0, SAMPLE))
    high_key = tl.to_tensor(0)
    low_key = tl.to_tensor(0)
    for step in range(KEY_BITS):
        bit = 1 << (KEY_BITS - 1 - step)
        high_key = tl.where(tl.sum((key >= (high_key | bit)).to(tl.int32), 0) >= upper, high_key | bit, high_key)
        low_key = tl.where(tl.sum((key >= (low_key | bit)).to(tl.int32), 0) >= lower, low_key | bit, low_key)
    bins_shift = tl.to_tensor(0)
    for step in range(KEY_BITS - BIN_BITS):
        bins_shift += (((high_key - low_key) >> (BIN_BITS + step)) > 0).to(tl.int32)
    tl.store(low + k, low_key)
    tl.store(high + k, high_key)
    tl.store(shift + k, bins_shift)


@triton.jit
def clear_kernel(bins, above, shift, SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr):
    """Zeroes the counts of what is not finished."""
    segment = tl.program_id(0)
    k = tl.program_id(1)
    if tl.load(shift + k) != _FINISHED:
        where = (k.to(tl.int64) * SEGMENTS + segment) * SEGMENT + tl.arange(0, SEGMENT)
        tl.store(bins + where, tl.zeros([SEGMENT], bins.dtype.element_ty))
        tl.store(above + k, 0, mask=segment == 0)


@triton.jit
def add(counter, count):
    """Adds to a counter; leaves it alone where there is nothing to add."""
    tl.atomic_add(counter, count.to(counter.dtype.element_ty), mask=count > 0, sem="relaxed")


# Atomic additions take one element a thread. Were a and b known to be aligned, they would be loaded four a thread, and
# every address of an addition would pass through shared memory.
@triton.jit(do_not_specialize_on_alignment=["a", "b"])
def count_kernel(
    bins, above, a, b, alphas, low, high, shift, pending, first_bad, n, K,
    BIN_COUNT: tl.constexpr, INFINITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counts the keys above and inside each bracket that is not finished."""
    if tl.load(pending) == 0:
        return
    block = tl.program_id(0)
    i = indices(block, BLOCK)
    inside = i < n
    a = load(a, i, inside)
    b = load(b, i, inside)
    largest = tl.zeros([BLOCK], tl.int32)
    for k in range(K):
        bracket_shift = tl.load(shift + k)
        if bracket_shift != _FINISHED:
            key = tl.where(inside, magnitude_key(mix(a, b, tl.load(alphas + k))), -1)
            largest = tl.maximum(largest, key)
            bracket_low = tl.load(low + k)
            bracket_high = tl.load(high + k)
            one = tl.full([BLOCK], 1, bins.dtype.element_ty)
            between = (key > bracket_low) & (key < bracket_high)
            tl.atomic_add(bins + ((key - bracket_low) >> bracket_shift), one, mask=between, sem="relaxed")
            # Three counts of at most BLOCK each, in one sum.
            ends = tl.where(key == bracket_low, 1 << 20, tl.where(key == bracket_high, 1 << 40, 0))
            counts = tl.sum(tl.where(key > bracket_high, 1, ends), 0)
            add(above + k, counts & 0xFFFFF)
            add(bins, (counts >> 20) & 0xFFFFF)
            add(bins + ((bracket_high - bracket_low) >> bracket_shift), counts >> 40)
        bins += BIN_COUNT
    report(first_bad, largest >= INFINITY, block, BLOCK)


@triton.jit
def add_segments_kernel(sums, bins, shift, SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr):
    """sums [K, SEGMENTS]: those of the bins."""
    segment = tl.program_id(0)
    k = tl.program_id(1)
    if tl.load(shift + k) != _FINISHED:
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
    low, high, shift, survivors, pending, bins, sums, above, keep, KEY_BITS: tl.constexpr, BIN_BITS: tl.constexpr,
    SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """The bracket becomes the bin that holds the threshold, or all keys if it missed the threshold.

    survivors [K]: how many of the entries of the threshold's magnitude survive.
    """
    k = tl.program_id(0)
    bracket_shift = tl.load(shift + k)
    if bracket_shift != _FINISHED:
        segments = tl.load(sums + k * SEGMENTS + tl.arange(0, SEGMENTS))
        total = tl.sum(segments, 0)
        rank_above = keep - tl.load(above + k)  # 1 is the largest in the bracket
        if (rank_above >= 1) & (rank_above <= total):
            segment, below = locate(segments, total - rank_above)
            row = (k.to(tl.int64) * SEGMENTS + segment) * SEGMENT
            counts = tl.load(bins + row + tl.arange(0, SEGMENT)).to(tl.int64)
            place, below_here = locate(counts, total - rank_above - below)
            through = below + below_here + tl.sum(tl.where(tl.arange(0, SEGMENT) == place, counts, 0), 0)
            bin_low = tl.load(low + k) + ((segment * SEGMENT + place) << bracket_shift)
            tl.store(low + k, bin_low)
            tl.store(high + k, bin_low + ((1 << bracket_shift) - 1))
            tl.store(survivors + k, rank_above - (total - through))
            tl.store(shift + k, tl.where(bracket_shift == 0, _FINISHED, tl.maximum(bracket_shift - BIN_BITS, 0)))
            tl.atomic_add(pending, -1, mask=bracket_shift == 0, sem="relaxed")
        else:
            tl.store(low + k, 0)
            tl.store(high + k, (1 << KEY_BITS) - 1)
            tl.store(shift + k, KEY_BITS - BIN_BITS)


@triton.jit
def count_equal_kernel(counts, a, b, alphas, low, n, K, BLOCK: tl.constexpr):
    """counts [K, blocks]: the entries of the threshold's magnitude in each block."""
    block = tl.program_id(0)
    i = indices(block, BLOCK)
    inside = i < n
    a = load(a, i, inside)
    b = load(b, i, inside)
    for k in range(K):
        equal = (magnitude_key(mix(a, b, tl.load(alphas + k))) == tl.load(low + k)) & inside
        tl.store(counts + block, tl.sum(equal.to(tl.int32), 0))
        counts += tl.num_programs(0)


@triton.jit
def find_kernel(last, a, b, alphas, low, survivors, blocks, before, n, BLOCK: tl.constexpr):
    """last [K]: where the last survivor stands, in block blocks[k] with before[k] of its magnitude in blocks before."""
    k = tl.program_id(0)
    i = indices(tl.load(blocks + k), BLOCK)
    inside = i < n
    x = mix(load(a, i, inside), load(b, i, inside), tl.load(alphas + k))
    equal = (magnitude_key(x) == tl.load(low + k)) & inside
    position = tl.load(before + k) + tl.cumsum(equal.to(tl.int32), 0)
    tl.store(last + k, tl.sum(tl.where(equal & (position == tl.load(survivors + k)), i, 0), 0))


def interpolate_threshold(
    a: Tensor, b: Tensor | None, alphas: Tensor, keep: int, first_bad: Tensor
) -> tuple[Tensor, Tensor]:
    """Where `interpolate_prune` cuts, for each coefficient.

    Args:
        a, b: vectors [n] of float32, float16 or bfloat16. Without b, x is a.
        alphas: float32 [K].
        keep: how many entries survive, 0..n.
        first_bad: int64 [1], lowered to the index of the first x that is NaN or infinite.

    Returns:
        The keep-th largest |x|, float32 [K], and the index of the last entry of that magnitude that survives,
        int64 [K]. For keep = 0: +inf and -1. If an x is NaN or infinite, numbers without a meaning.
    """
    K = alphas.numel()
    if a.numel() == 0 or K == 0:
        return _nothing_survives(alphas)
    with device_of(a):
        key, survivors = _select(a, b, alphas, keep, first_bad)
        if keep == 0:
            return _nothing_survives(alphas)
        return _magnitude(key, a.dtype), _last_survivor(a, b, alphas, key, survivors)


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
    margin = 4.0 * math.sqrt(expected * (1.0 - keep / n)) + 4.0
    return count, math.floor(expected - margin), math.ceil(expected + margin)


def _bin_bits(n: int, key_bits: int) -> int:
    """So many bins that one sweep usually does, and so few that they weigh little beside the vectors."""
    return min(max(n.bit_length() - 7, 11), 20, key_bits)


def _select(a: Tensor, b: Tensor | None, alphas: Tensor, keep: int, first_bad: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold's key, int32 [K], and how many entries of that magnitude survive, int64 [K]."""
    n, K, device = a.numel(), alphas.numel(), a.device
    key_bits = 31 if a.dtype == torch.float32 else 15
    infinity = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}[a.dtype]
    bin_bits = _bin_bits(n, key_bits)
    segments = (1 << bin_bits) // SEGMENT
    count, upper, lower = _sample_ranks(n, keep)

    keys = torch.full((K, SAMPLE), -1, dtype=torch.int32, device=device)
    low, high, shift = torch.empty(3, K, dtype=torch.int32, device=device)
    survivors, above = torch.empty(2, K, dtype=torch.int64, device=device)
    pending = torch.full((1,), K, dtype=torch.int32, device=device)
    bins = torch.empty(K << bin_bits, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
    sums = torch.empty(K, segments, dtype=torch.int64, device=device)

    sample_kernel[(triton.cdiv(count, 256), K)](keys, a, b, alphas, n, count, SAMPLE=SAMPLE, BLOCK=256, **OPTIONS)
    bracket_kernel[(K,)](
        keys, low, high, shift, upper, lower,
        SAMPLE=SAMPLE, KEY_BITS=key_bits, BIN_BITS=bin_bits, num_warps=BRACKET_WARPS,
    )  # fmt: skip
    sweeps = 1 + math.ceil(key_bits / bin_bits) if keep else 1  # the first bracket, and all keys if it missed
    for _ in range(sweeps):
        clear_kernel[(segments, K)](bins, above, shift, SEGMENTS=segments, SEGMENT=SEGMENT)
        count_kernel[(triton.cdiv(n, COUNT_BLOCK),)](
            bins, above, a, b, alphas, low, high, shift, pending, first_bad, n, K,
            BIN_COUNT=1 << bin_bits, INFINITY=infinity, BLOCK=COUNT_BLOCK, **OPTIONS,
        )  # fmt: skip
        add_segments_kernel[(segments, K)](sums, bins, shift, SEGMENTS=segments, SEGMENT=SEGMENT)
        narrow_kernel[(K,)](
            low, high, shift, survivors, pending, bins, sums, above, keep,
            KEY_BITS=key_bits, BIN_BITS=bin_bits, SEGMENTS=segments, SEGMENT=SEGMENT,
        )  # fmt: skip
    return low, survivors


def _last_survivor(a: Tensor, b: Tensor | None, alphas: Tensor, key: Tensor, survivors: Tensor) -> Tensor:
    """The index of the survivors[k]-th entry whose key is key[k]; int64 [K]."""
    n, K = a.numel(), alphas.numel()
    blocks = triton.cdiv(n, BLOCK)
    counts = torch.empty(K, blocks, dtype=torch.int32, device=a.device)
    count_equal_kernel[(blocks,)](counts, a, b, alphas, key, n, K, BLOCK=BLOCK, **OPTIONS)
    through = counts.cumsum(1, dtype=torch.int64)
    block = torch.searchsorted(through, survivors[:, None]).clamp_(max=blocks - 1)
    before = through.gather(1, block) - counts.gather(1, block)
    last = torch.empty(K, dtype=torch.int64, device=a.device)
    find_kernel[(K,)](last, a, b, alphas, key, survivors, block, before, n, BLOCK=BLOCK, **OPTIONS)
    return last
