"""The threshold among the entries that the sweep marked: a histogram of those inside each bracket, a list of those in
the bins that hold the thresholds, and the one of its rank in its bin.

Words (`word_of` in threshold.py) are what is counted and listed: no two are equal, and their order decides ties.
"""
# mypy: allow-untyped-defs
# mypy: disable-error-code="assignment,var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from lpk.kernels.elements import load, mix
from lpk.kernels.threshold import (
    BELOW,
    END,
    FIRST,
    GUESSED,
    KEY,
    LISTED,
    LISTED_COUNT,
    MARKED,
    MOST,
    RANK,
    SHIFT,
    STATUS,
    WANTED,
    backward,
    locate,
    magnitude,
    magnitude_key,
    word_of,
)

MARKED_ROWS, MARKED_COLUMNS = 8, 128  # marked entries that a program looks at together; a column for each thread
DIGIT_BITS, LIST_BLOCK = 8, 1024  # of a list: bits of its words that are looked at in one round; words read at once


@triton.jit
def marked_count(state, room):
    return tl.minimum(tl.load(state + MARKED * MOST), room).to(tl.int32)


@triton.jit
def load_marked(where, of_a, of_b, place, exists, n, index_bits, HAS_B: tl.constexpr):
    """Marked entries: the elements of a and b, and the lower half of their words."""
    i = tl.load(where + place, mask=exists, other=0)
    x_a, x_b = load(of_a, of_b, place, exists, HAS_B)
    return x_a, x_b, backward(i, n, index_bits)


@triton.jit
def load_bracket(state):
    """The first key of a coefficient's bracket, how many keys there are, and the shift that makes a bin of a word."""
    first = tl.load(state + FIRST * MOST).to(tl.int32)
    size = tl.maximum(tl.load(state + END * MOST).to(tl.int32) - first, 0)
    return first, size.to(tl.uint32), tl.load(state + SHIFT * MOST).to(tl.int32)


@triton.jit
def bin_in_bracket(bracket, a, b, backward, alpha, HAS_B: tl.constexpr):
    """The bins of entries in a bracket, and which of them are inside. What is no entry reads as zero, and is not."""
    first, size, shift = bracket
    distance = (magnitude_key(mix(a, b, alpha, HAS_B)) - first).to(tl.uint32, bitcast=True)
    # The word's highest bits, without numbers of 64 bits.
    upper = (distance << tl.maximum(32 - shift, 0)) >> tl.maximum(shift - 32, 0)
    lower = (backward >> 1) >> tl.minimum(shift - 1, 31)
    return (upper | lower).to(tl.int32), distance < size


@triton.jit
def count_marked(
    state, bins, where, of_a, of_b, alphas, n, room, index_bits,
    HAS_B: tl.constexpr, K: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Counts the entries inside each bracket, in bins [K, BINS]."""
    count = marked_count(state, room)
    for start in range(tl.program_id(0) * ROWS * COLUMNS, count, tl.num_programs(0) * ROWS * COLUMNS):
        entries = ()
        for row in tl.static_range(ROWS):
            place = start + row * COLUMNS + tl.arange(0, COLUMNS)
            entries += (load_marked(where, of_a, of_b, place, place < count, n, index_bits, HAS_B),)
        for k in tl.static_range(K):
            bracket = load_bracket(state + k)
            alpha = tl.load(alphas + k)
            for row in tl.static_range(ROWS):
                x_a, x_b, backward = entries[row]
                bin, inside = bin_in_bracket(bracket, x_a, x_b, backward, alpha, HAS_B)
                tl.atomic_add(bins + k * BINS + bin, 1, mask=inside, sem="relaxed")


@triton.jit
def judge(state, bins, complete, entries, list_room, keep, BINS: tl.constexpr):
    """Where the counts tell that a coefficient's threshold is: in which bin of its bracket, or perhaps beside it.

    complete: there was room for all marked entries.
    """
    counts = tl.load(bins + tl.arange(0, BINS))
    from_first = entries - tl.load(state + BELOW * MOST)
    from_end = from_first - tl.sum(counts, 0)
    bin, in_bin, rank = locate(counts, keep - from_end, BINS)
    if (keep > from_end) & (keep <= from_first) & (in_bin <= list_room) & complete:
        tl.store(state + STATUS * MOST, LISTED)
        tl.store(state + WANTED * MOST, bin)
        tl.store(state + RANK * MOST, rank)
    else:
        beside = tl.where(keep > from_first, tl.load(state + FIRST * MOST) - 1, tl.load(state + END * MOST))
        tl.store(state + STATUS * MOST, GUESSED)
        tl.store(state + WANTED * MOST, -1)
        tl.store(state + KEY * MOST, beside)


@triton.jit
def list_bins(
    state, places, where, of_a, of_b, alphas, n, room, index_bits,
    HAS_B: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """places: of the marked entries that are in a wanted bin, whichever. Few blocks have one."""
    count = marked_count(state, room)
    for start in range(tl.program_id(0) * ROWS * COLUMNS, count, tl.num_programs(0) * ROWS * COLUMNS):
        begin = start + tl.arange(0, COLUMNS)
        entries = ()
        for row in tl.static_range(ROWS):
            place = begin + row * COLUMNS
            entries += (load_marked(where, of_a, of_b, place, place < count, n, index_bits, HAS_B),)
        missed = ()  # zero for what is wanted
        own = tl.zeros([COLUMNS], tl.int32)
        for row in tl.static_range(ROWS):
            x_a, x_b, backward = entries[row]
            least = tl.full([COLUMNS], 0xFFFFFFFF, tl.uint32)
            for k in tl.static_range(K):
                bin, inside = bin_in_bracket(load_bracket(state + k), x_a, x_b, backward, tl.load(alphas + k), HAS_B)
                other = bin.to(tl.uint32) ^ tl.load(state + WANTED * MOST + k).to(tl.uint32)
                least = tl.minimum(least, tl.where(inside, other, 0xFFFFFFFF))
            missed += (least,)
            own += (least == 0).to(tl.int32)
        total = tl.sum(own, 0)
        if total > 0:
            base = tl.atomic_add(state + LISTED_COUNT * MOST, total.to(tl.int64), sem="relaxed").to(tl.int32)
            at = base + tl.cumsum(own, 0) - own
            for row in tl.static_range(ROWS):
                tl.store(places + at, begin + row * COLUMNS, mask=missed[row] == 0)
                at += (missed[row] == 0).to(tl.int32)


@triton.jit
def own_words(
    state, words, places, where, of_a, of_b, alpha, n, index_bits, listed, HAS_B: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes the words of a coefficient's own bin, and returns how many there are. listed: places, of all bins."""
    first = tl.load(state + FIRST * MOST).to(tl.int32)
    wanted_bin = tl.load(state + WANTED * MOST).to(tl.int32)
    count = tl.full([], 0, tl.int32)
    for start in range(0, listed, BLOCK):
        item = start + tl.arange(0, BLOCK)
        place = tl.load(places + item, mask=item < listed, other=0)
        x_a, x_b, backward = load_marked(where, of_a, of_b, place, item < listed, n, index_bits, HAS_B)
        bin, inside = bin_in_bracket(load_bracket(state), x_a, x_b, backward, tl.load(alpha), HAS_B)
        own = (inside & (bin == wanted_bin)).to(tl.int32)
        distance = magnitude_key(mix(x_a, x_b, tl.load(alpha), HAS_B)) - first
        tl.store(words + count + tl.cumsum(own, 0) - own, word_of(distance, backward), mask=own > 0)
        count += tl.sum(own, 0)
    tl.debug_barrier()  # whoever reads the words sees them
    return count


@triton.jit
def select(value, last, state, words, count, vector, n, index_bits, DIGIT_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The key and the index of the word of the wanted rank among those of a coefficient's bin."""
    DIGITS: tl.constexpr = 1 << DIGIT_BITS
    rank = tl.load(state + RANK * MOST)
    known = tl.load(state + WANTED * MOST)  # the word's highest bits
    shift = tl.load(state + SHIFT * MOST).to(tl.int32)
    while shift > 0:
        bits = tl.minimum(shift, DIGIT_BITS)
        digits = tl.zeros([DIGITS], tl.int32)
        for start in range(0, count, BLOCK):
            place = start + tl.arange(0, BLOCK)
            word = tl.load(words + place, mask=place < count, other=-1)
            digit = (word >> (shift - bits)).to(tl.int32) & ((1 << bits) - 1)
            digits += tl.histogram(digit, DIGITS, mask=word >> shift == known)
        next_bits, _, rank = locate(digits, rank, DIGITS)
        known = (known << bits) | next_bits
        shift -= bits
    key = tl.load(state + FIRST * MOST) + (known >> 32)
    tl.store(value, magnitude(key.to(tl.int32), vector))
    tl.store(last, n - 1 - ((known & 0xFFFFFFFF) >> (32 - index_bits)))
