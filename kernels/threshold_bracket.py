"""The first brackets: the keys of a sample between which each coefficient's threshold should lie."""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lpk.kernels.elements import OPTIONS, load, mix
from lpk.kernels.threshold import Brackets, Vectors, magnitude_key

SAMPLE = 1 << 15
SIGMAS = 4.5  # half the bracket, in standard deviations of a rank in the sample; kBracketSigmas in csrc/bracket.h
SEED = 0
HEAVY = 8  # entries of a sample with one key: it is a heavy tie
BRACKET_WARPS = 32  # one program bisects the whole sample


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


def bracket(vectors: Vectors, keep: int, bin_bits: int) -> Brackets:
    """The brackets of the keep-th largest magnitudes, each divided into 2^bin_bits bins or fewer."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    count, upper, lower = sample_ranks(n, keep)
    keys = torch.full((K, SAMPLE), -1, dtype=torch.int32, device=device)
    brackets = Brackets(*torch.empty(4, K, dtype=torch.int32, device=device))
    sample_kernel[(triton.cdiv(count, 256), K)](
        keys, *vectors.arguments, n, count,
        HAS_B=vectors.b is not None, SAMPLE=SAMPLE, SEED=SEED, BLOCK=256, **OPTIONS,
    )  # fmt: skip
    bracket_kernel[(K,)](
        keys, *brackets, upper, lower,
        SAMPLE=SAMPLE, HEAVY=HEAVY, KEY_BITS=vectors.key_bits, BIN_BITS=bin_bits, num_warps=BRACKET_WARPS,
    )  # fmt: skip
    return brackets


def sample_ranks(n: int, keep: int) -> tuple[int, int, int]:
    """The size of the sample, and the ranks in it, from the top, between which the keep-th largest should lie."""
    count = min(n, SAMPLE)
    if count == n:
        return count, keep, keep
    expected = count * (keep / n)
    margin = SIGMAS * math.sqrt(expected * (1.0 - keep / n)) + 2.0
    return count, math.floor(expected - margin), math.ceil(expected + margin)
