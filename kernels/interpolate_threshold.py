"""For each coefficient the keep-th largest |x|, and the index of the last entry of that magnitude that survives.

A magnitude's key is its bit pattern, which orders as the magnitude does. For each coefficient:

1. A fixed-seed sample brackets the threshold's key, but for bad luck (SIGMAS in threshold_bracket.py).
2. One sweep over a and b counts the entries below each bracket, and writes those that may be inside of one, a few
   percent, with their indices (threshold_sweep.py).
3. A histogram of what is inside tells which of its bins holds the threshold; that bin is listed, and the threshold
   selected in the list (threshold_marked.py).

Where the counts say that the threshold is not inside, it is a key beside its bracket if there is a heavy tie: zeros,
constant vectors. Then that key's entries are counted by block, and the last survivor is looked for in one block
(threshold_ties.py). Where it is not that either, or the sweep had too little room, histograms of all entries find the
key (threshold_histogram.py). All kernels are always launched, and return at once where there is nothing to do; a step
that is seldom needed shares one with a step that always is.

What several programs count is added up by atomic additions of whole numbers, and from lists the entry of a rank is
taken: neither depends on an order, so the result never varies. The program that finishes last looks at the counts.

What is past a vector's end in its last block reads as zeros, which are below every bracket.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import FOUR_WARPS
from lpk.kernels.threshold import (
    BIN_BITS,
    BLOCK,
    DONE,
    FALLBACK_PROGRAMS,
    GUESSED,
    KNOWN,
    LISTED,
    LISTED_COUNT,
    MARKED,
    MOST,
    MOST_COEFFICIENTS,
    PROGRAMS,
    STATUS,
    TIED,
    Counts,
    Vectors,
    counts,
    last_of,
)
from lpk.kernels.threshold_bracket import SAMPLE, bracket
from lpk.kernels.threshold_histogram import HISTOGRAM_CHUNK, ROUND_BITS, clear, narrow
from lpk.kernels.threshold_marked import (
    DIGIT_BITS,
    LIST_BLOCK,
    MARKED_COLUMNS,
    MARKED_ROWS,
    count_marked,
    judge,
    list_bins,
    own_words,
    select,
)
from lpk.kernels.threshold_sweep import sweep
from lpk.kernels.threshold_ties import TIES_CHUNK, confirm, count_ties, find

MOST_INDEXED = 1 << 32  # entries whose key and index share a word of 63 bits; longer vectors are searched without
MARKED_OF = 40  # room for the marked entries: one of so many for each coefficient; a bracket holds some 1.2%
LISTED_OF = 256  # and for a coefficient's list; a bin holds one of 100,000


@triton.jit(do_not_specialize=["n", "room", "list_room", "index_bits", "entries", "keep"])
def count_kernel(
    state, bins, where, of_a, of_b, alphas, n, room, list_room, index_bits, entries, keep,
    HAS_B: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Counts what is inside the brackets, and says for each coefficient where its threshold is."""
    count_marked(state, bins, where, of_a, of_b, alphas, n, room, index_bits, HAS_B, K, BINS, ROWS, COLUMNS)
    if last_of(state + DONE * MOST, tl.num_programs(0)):
        complete = tl.load(state + MARKED * MOST) <= room
        for k in range(K):
            judge(state + k, bins + k * BINS, complete, entries, list_room, keep, BINS)


@triton.jit(do_not_specialize=["n", "room", "index_bits", "blocks", "keep"])
def list_kernel(
    state, places, ties, bins, where, of_a, of_b, a, b, alphas, n, room, index_bits, blocks, keep,
    HAS_B: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    TIES_CHUNK: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Lists the bins that hold the thresholds; counts the entries of guessed keys, and says whether these are right."""
    list_bins(state, places, where, of_a, of_b, alphas, n, room, index_bits, HAS_B, K, ROWS, COLUMNS)
    count_ties(ties, GUESSED, state, a, b, alphas, n, blocks, K, HAS_B, BLOCK)
    if last_of(state + DONE * MOST + 1, tl.num_programs(0)):
        for k in range(K):
            if tl.load(state + STATUS * MOST + k) == GUESSED:
                right = confirm(state + k, ties + tl.cast(k, tl.int64) * blocks, blocks, keep, TIES_CHUNK)
                if not right:
                    clear(bins + k * BINS, BINS, CHUNK)


# Atomic additions take one element a thread. Were a and b known to be aligned, they would be loaded four a thread, and
# every address of an addition would pass through shared memory.
@triton.jit(
    do_not_specialize=["n", "list_room", "index_bits", "blocks", "K"], do_not_specialize_on_alignment=["a", "b"]
)
def select_kernel(
    values, last, state, words, places, ties, bins, where, of_a, of_b, a, b, alphas, n, list_room, index_bits, blocks,
    K,
    HAS_B: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
    DIGIT_BITS: tl.constexpr, LIST_BLOCK: tl.constexpr, TIES_CHUNK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The thresholds, by a program each; and the first bits of those that are unknown."""
    for k in range(tl.program_id(0), K, tl.num_programs(0)):
        status = tl.load(state + STATUS * MOST + k)
        if status == LISTED:
            own_list = words + k * list_room
            listed = tl.load(state + LISTED_COUNT * MOST).to(tl.int32)
            count = own_words(
                state + k, own_list, places, where, of_a, of_b, alphas + k, n, index_bits, listed, HAS_B, LIST_BLOCK
            )
            select(values + k, last + k, state + k, own_list, count, a, n, index_bits, DIGIT_BITS, LIST_BLOCK)
        if status == TIED:
            own = ties + tl.cast(k, tl.int64) * blocks
            find(values + k, last + k, state + k, own, a, b, alphas + k, n, blocks, HAS_B, BLOCK, TIES_CHUNK)
    narrow(state, state + DONE * MOST + 2, bins, a, b, alphas, n, blocks, K, HAS_B, SHIFT, BITS, BINS, BLOCK, CHUNK)


@triton.jit(do_not_specialize=["n", "blocks", "K"], do_not_specialize_on_alignment=["a", "b"])
def narrow_kernel(
    state, bins, a, b, alphas, n, blocks, K,
    HAS_B: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The last bits of those keys that are unknown."""
    narrow(state, state + DONE * MOST + 3, bins, a, b, alphas, n, blocks, K, HAS_B, 0, BITS, BINS, BLOCK, CHUNK)


@triton.jit(do_not_specialize=["n", "blocks", "K"])
def ties_kernel(
    values, last, state, ties, a, b, alphas, n, blocks, K,
    HAS_B: tl.constexpr, BLOCK: tl.constexpr, TIES_CHUNK: tl.constexpr,
):  # fmt: skip
    """The thresholds whose keys histograms found."""
    count_ties(ties, KNOWN, state, a, b, alphas, n, blocks, K, HAS_B, BLOCK)
    if last_of(state + DONE * MOST + 4, tl.num_programs(0)):
        for k in range(K):
            if tl.load(state + STATUS * MOST + k) == KNOWN:
                own = ties + tl.cast(k, tl.int64) * blocks
                find(values + k, last + k, state + k, own, a, b, alphas + k, n, blocks, HAS_B, BLOCK, TIES_CHUNK)


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
        return torch.full_like(alphas, math.inf), torch.full_like(alphas, -1, dtype=torch.int64)
    values, last = torch.empty_like(alphas), torch.empty_like(alphas, dtype=torch.int64)
    turns = (numbers.split(MOST_COEFFICIENTS) for numbers in (values, last, alphas))
    for own_values, own_last, own_alphas in zip(*turns, strict=True):
        _search(own_values, own_last, Vectors(a, b, own_alphas), keep, first_bad)
    return values, last


def _search(values: Tensor, last: Tensor, vectors: Vectors, keep: int, first_bad: Tensor) -> None:
    """Writes the thresholds of so many coefficients as one sweep has."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    found = counts(device)
    bracket(found, vectors, keep, values, last)
    room = min(n, max(n // MARKED_OF * K, SAMPLE)) if n <= MOST_INDEXED else 0
    marked = (  # where they stand, and their elements of a and b
        torch.empty(room, dtype=torch.int32 if n < 2**31 else torch.int64, device=device),
        torch.empty(room, dtype=vectors.a.dtype, device=device),
        torch.empty(room, dtype=vectors.a.dtype, device=device),
    )
    entries = sweep(found, marked, vectors, room, first_bad)
    if keep > 0:  # else the sweep only looked for what is not finite
        _select(values, last, found, marked, entries, vectors, keep)


def _select(
    values: Tensor,
    last: Tensor,
    found: Counts,
    marked: tuple[Tensor, Tensor, Tensor],
    entries: int,
    vectors: Vectors,
    keep: int,
) -> None:
    """What follows the sweep: the thresholds among what it marked, or else among all entries."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    state, room, index_bits = found.state, len(marked[0]), (n - 1).bit_length()
    blocks, list_room = triton.cdiv(n, BLOCK), min(n, max(n // LISTED_OF, SAMPLE))
    words = torch.empty(K * list_room, dtype=torch.int64, device=device)
    places = torch.empty(min(room, K * list_room), dtype=torch.int32, device=device)
    ties = torch.empty(K * blocks, dtype=torch.int32, device=device)
    bins = torch.empty(K << ROUND_BITS, dtype=torch.int32 if n < 2**31 else torch.int64, device=device)
    programs = vectors.programs(MARKED_ROWS * MARKED_COLUMNS, PROGRAMS)
    few, has_b = vectors.programs(BLOCK, FALLBACK_PROGRAMS), {"HAS_B": vectors.b is not None}
    counting = {"BINS": 1 << ROUND_BITS, "CHUNK": HISTOGRAM_CHUNK}
    looking = {"K": K, "ROWS": MARKED_ROWS, "COLUMNS": MARKED_COLUMNS}
    count_kernel[programs](
        state, found.bins, *marked, vectors.alphas, n, room, list_room, index_bits, entries, keep,
        **has_b, **looking, BINS=1 << BIN_BITS, **FOUR_WARPS,
    )  # fmt: skip
    list_kernel[programs](
        state, places, ties, bins, *marked, *vectors.arguments, n, room, index_bits, blocks, keep,
        **has_b, **looking, BLOCK=BLOCK, TIES_CHUNK=TIES_CHUNK, **counting, **FOUR_WARPS,
    )  # fmt: skip
    first_bits = min(ROUND_BITS, vectors.key_bits)
    rest = vectors.key_bits - first_bits
    select_kernel[few](
        values, last, state, words, places, ties, bins, *marked, *vectors.arguments, n, list_room, index_bits, blocks,
        K, **has_b, SHIFT=rest, BITS=first_bits, **counting, BLOCK=BLOCK, DIGIT_BITS=DIGIT_BITS, LIST_BLOCK=LIST_BLOCK,
        TIES_CHUNK=TIES_CHUNK, **FOUR_WARPS,
    )  # fmt: skip
    if n <= SAMPLE:  # the sample was the vector, and there was room for all of it: nothing can be unknown
        return
    if rest > 0:
        narrow_kernel[few](
            state, bins, *vectors.arguments, n, blocks, K, **has_b, BITS=rest, **counting, BLOCK=BLOCK, **FOUR_WARPS
        )
    ties_kernel[few](
        values, last, state, ties, *vectors.arguments, n, blocks, K,
        **has_b, BLOCK=BLOCK, TIES_CHUNK=TIES_CHUNK, **FOUR_WARPS,
    )  # fmt: skip
