"""The brackets: the keys of a sample between which each coefficient's threshold should lie.

Both ends of a bracket are found alike: the bin of their highest bits in a histogram of the sample, then of the next
bits among the entries that share these. What these bits leave open belongs to the bracket, unless the bin holds many
entries, which may all be equal: then the bracket ends beside the outermost of them. So a heavy tie is not inside.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import FOUR_WARPS, load, mix
from lpk.kernels.threshold import (
    BIN_BITS,
    COARSE_BITS,
    END,
    FINE_BITS,
    FIRST,
    MOST,
    SHIFT,
    TICKETS,
    WIDTH,
    Counts,
    Vectors,
    last_of,
    locate,
    magnitude,
    magnitude_key,
)

SAMPLE = 1 << 17
SIGMAS = 4.5  # half the bracket, in standard deviations of a rank in the sample; kBracketSigmas in csrc/bracket.h
SEED = 0
MANY = 64  # entries of a bin: more than one of so many in the sample
SAMPLE_BLOCK, BRACKET_BLOCK = 512, 1024
INFINITY = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}  # its key


@triton.jit
def add_histogram(bins, bin, mask, BINS: tl.constexpr):
    counts = tl.histogram(bin, BINS, mask=mask)
    tl.atomic_add(bins + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")


# Numbers that change from call to call are not specialized, lest a new one be compiled for.
@triton.jit(do_not_specialize=["n", "count", "K"], do_not_specialize_on_alignment=["a", "b"])
def sample_kernel(
    keys, coarse, a, b, alphas, n, count, K,
    HAS_B: tl.constexpr, SAMPLE: tl.constexpr, SEED: tl.constexpr, KEY_BITS: tl.constexpr, COARSE_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """keys [K, SAMPLE]: those of `count` entries, one from each of as many equal stretches; and a histogram of them."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin = s.to(tl.int64) * n // count
    width = (s + 1).to(tl.int64) * n // count - begin
    jitter = (tl.rand(SEED, s) * width.to(tl.float32)).to(tl.int64)  # a stride would alias with channels
    i = begin + tl.minimum(jitter, width - 1)
    inside = s < count
    of_a, of_b = load(a, b, i, inside, HAS_B)
    for k in range(K):
        key = magnitude_key(mix(of_a, of_b, tl.load(alphas + k), HAS_B))
        tl.store(keys + k * SAMPLE + s, key, mask=inside)
        add_histogram(coarse + (k << COARSE_BITS), key >> (KEY_BITS - COARSE_BITS), inside, 1 << COARSE_BITS)


@triton.jit(do_not_specialize=["count", "upper", "lower", "infinity"])
def bracket_kernel(
    state, coarse, fine, keys, values, last, a, count, upper, lower, infinity,
    SAMPLE: tl.constexpr, MANY: tl.constexpr, KEY_BITS: tl.constexpr, COARSE_BITS: tl.constexpr,
    FINE_BITS: tl.constexpr, BIN_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The bracket between the upper-th and the lower-th largest key of a sample; it is open where there is none."""
    k = tl.program_id(1)
    COARSE: tl.constexpr = 1 << COARSE_BITS
    FINE: tl.constexpr = 1 << FINE_BITS
    REST: tl.constexpr = KEY_BITS - COARSE_BITS - FINE_BITS
    sampled = tl.load(coarse + k * COARSE + tl.arange(0, COARSE))
    upper_bits, _, upper_rank = locate(sampled, upper, COARSE)
    lower_bits, _, lower_rank = locate(sampled, lower, COARSE)
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keys += k * SAMPLE
    key = tl.load(keys + s, mask=s < count, other=-1)
    upper_fine = fine + 2 * k * FINE
    lower_fine = upper_fine + FINE
    add_histogram(upper_fine, (key >> REST) & (FINE - 1), key >> (REST + FINE_BITS) == upper_bits, FINE)
    add_histogram(lower_fine, (key >> REST) & (FINE - 1), key >> (REST + FINE_BITS) == lower_bits, FINE)
    state += k
    if last_of(state + TICKETS * MOST, tl.num_programs(0)):
        bin, in_upper, _ = locate(tl.load(upper_fine + tl.arange(0, FINE)), upper_rank, FINE)
        upper_bits = (upper_bits << FINE_BITS) | bin
        bin, in_lower, _ = locate(tl.load(lower_fine + tl.arange(0, FINE)), lower_rank, FINE)
        lower_bits = (lower_bits << FINE_BITS) | bin
        end = (upper_bits + 1) << REST
        first = tl.maximum(lower_bits << REST, 1)
        if tl.maximum(in_upper, in_lower) * MANY > count:
            largest = k * 0
            smallest = k * 0 + 0x7FFFFFFF
            for start in range(0, count, 8 * BLOCK):
                place = start + tl.arange(0, 8 * BLOCK)
                some = tl.load(keys + place, mask=place < count, other=-1)
                largest = tl.maximum(largest, tl.max(tl.where(some >> REST == upper_bits, some, 0), 0))
                smallest = tl.minimum(smallest, tl.min(tl.where(some >> REST == lower_bits, some, 0x7FFFFFFF), 0))
            end = tl.where(in_upper * MANY > count, largest, end)
            first = tl.where(in_lower * MANY > count, smallest + 1, first)
        end = tl.where(upper < 1, infinity, end)
        first = tl.where(lower > count, 1, first)
        width = magnitude(tl.maximum(end - 1, first), a) - magnitude(first, a)
        bits = k * 0 + 32  # of the words inside
        for bit in range(KEY_BITS):
            bits += ((end - first - 1) >> bit > 0).to(tl.int32)
        tl.store(state + FIRST * MOST, first)
        tl.store(state + END * MOST, end)
        tl.atomic_max(state - k + WIDTH * MOST, width.to(tl.int32, bitcast=True).to(tl.int64), sem="relaxed")
        tl.store(state + SHIFT * MOST, tl.maximum(bits - BIN_BITS, 0))
        tl.store(values + k, float("inf"))  # what nothing survives, should there be no threshold: among NaN
        tl.store(last + k, -1)


def bracket(counts: Counts, vectors: Vectors, keep: int, values: Tensor, last: Tensor) -> None:
    """Writes the brackets of the keep-th largest magnitudes into the state."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    count, upper, lower = sample_ranks(n, keep)
    keys = torch.empty(K, SAMPLE, dtype=torch.int32, device=device)
    bits = {"KEY_BITS": vectors.key_bits, "COARSE_BITS": COARSE_BITS}
    sample_kernel[(triton.cdiv(count, SAMPLE_BLOCK),)](
        keys, counts.coarse, *vectors.arguments, n, count, K,
        HAS_B=vectors.b is not None, SAMPLE=SAMPLE, SEED=SEED, **bits, BLOCK=SAMPLE_BLOCK, **FOUR_WARPS,
    )  # fmt: skip
    bracket_kernel[(triton.cdiv(count, BRACKET_BLOCK), K)](
        counts.state, counts.coarse, counts.fine, keys, values, last, vectors.a, count, upper, lower,
        INFINITY[vectors.a.dtype],
        SAMPLE=SAMPLE, MANY=MANY, **bits, FINE_BITS=min(FINE_BITS, vectors.key_bits - COARSE_BITS), BIN_BITS=BIN_BITS,
        BLOCK=BRACKET_BLOCK, **FOUR_WARPS,
    )  # fmt: skip


def sample_ranks(n: int, keep: int) -> tuple[int, int, int]:
    """The size of the sample, and the ranks in it, from the top, between which the keep-th largest should lie."""
    count = min(n, SAMPLE)
    if count == n:
        return count, keep, keep
    expected = count * (keep / n)
    margin = SIGMAS * math.sqrt(expected * (1.0 - keep / n)) + 2.0
    return count, math.floor(expected - margin), math.ceil(expected + margin)
