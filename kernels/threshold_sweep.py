"""One sweep over a and b for all coefficients: how many entries are below each bracket, and which may be inside of one.

A thread takes the same column of each row of a block, so that what it counts stays in its registers until the end. For
an entry and a coefficient there are five instructions: two for the interpolation, |x| - first, one that counts its
sign, and one that keeps the least distance as a pattern of bits: what is below `first` is far. What is nearer to any
bracket's first key than the widest bracket is wide is marked, and written with its index. Few are; which brackets they
are in is decided afterwards (threshold_marked.py).

Rounding does no harm: it keeps order, so that nothing inside is farther than the last key, and a difference of
floating-point numbers is never rounded to zero, so that its sign is right.
"""
# mypy: allow-untyped-defs
# mypy: disable-error-code="assignment,var-annotated"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import is_bad, load, mix
from lpk.kernels.threshold import BELOW, FIRST, MARKED, MOST, PROGRAMS, WIDTH, Counts, Vectors, magnitude

SWEEP_ROWS, SWEEP_COLUMNS = 16, 128  # of a block; a column for each thread


@triton.jit(do_not_specialize=["n", "blocks", "room"], do_not_specialize_on_alignment=["a", "b"])
def sweep_kernel(
    state, where, of_a, of_b, a, b, alphas, first_bad, n, blocks, room,
    HAS_B: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """where, of_a, of_b [room]: the marked entries, as many as there is room for."""
    column = tl.arange(0, COLUMNS)
    widest = tl.load(state + WIDTH * MOST).to(tl.uint32)
    alpha = ()
    first = ()
    below = ()
    for k in tl.static_range(K):
        alpha += (tl.load(alphas + k),)
        first += (magnitude(tl.load(state + FIRST * MOST + k), a),)
        below += (tl.zeros([COLUMNS], tl.int32),)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        begin = tl.cast(block, tl.int64) * (ROWS * COLUMNS)
        left = tl.minimum(n - begin, ROWS * COLUMNS).to(tl.int32)
        row_a = ()
        row_b = ()
        for row in tl.static_range(ROWS):
            offset = row * COLUMNS + column
            x_a, x_b = load(a + begin, b + begin, offset, offset < left, HAS_B)
            row_a += (x_a,)
            row_b += (x_b,)
        marks = ()
        own = tl.zeros([COLUMNS], tl.int32)
        sizes = tl.zeros([COLUMNS], tl.float32)
        for row in tl.static_range(ROWS):
            nearest = tl.full([COLUMNS], 0xFFFFFFFF, tl.uint32)
            counted = ()
            for k in tl.static_range(K):
                x = mix(row_a[row], row_b[row], alpha[k], HAS_B)
                distance = (tl.abs(x.to(tl.float32)) - first[k]).to(tl.uint32, bitcast=True)
                nearest = tl.minimum(nearest, distance)
                counted += (below[k] + (distance >> 31).to(tl.int32),)
            below = counted
            marks += (nearest <= widest,)
            own += (nearest <= widest).to(tl.int32)
            sizes += tl.abs(row_a[row].to(tl.float32))
            if HAS_B:
                sizes += tl.abs(row_b[row].to(tl.float32))
        # Above the number of marks: the columns whose sum is not finite, most likely because an element is not.
        own += is_bad(sizes).to(tl.int32) << 16
        total = tl.sum(own, 0)
        if total > 0:
            base = tl.atomic_add(state + MARKED * MOST, (total & 0xFFFF).to(tl.int64), sem="relaxed")
            place = tl.minimum(base, room).to(tl.int32) + ((tl.cumsum(own, 0) - own) & 0xFFFF)
            for row in tl.static_range(ROWS):
                i = begin + row * COLUMNS + column
                written = marks[row] & (place < room)
                tl.store(where + place, i.to(where.dtype.element_ty), mask=written)
                tl.store(of_a + place, row_a[row], mask=written)
                if HAS_B:
                    tl.store(of_b + place, row_b[row], mask=written)
                place += marks[row].to(tl.int32)
            if total > 0xFFFF:
                bad = tl.full([COLUMNS], ROWS * COLUMNS, tl.int32)
                for row in tl.static_range(ROWS):
                    offset = row * COLUMNS + column
                    bad = tl.where(is_bad(row_a[row]) | is_bad(row_b[row]), tl.minimum(bad, offset), bad)
                first_offset = tl.min(bad, 0)
                tl.atomic_min(first_bad, begin + first_offset, mask=first_offset < ROWS * COLUMNS, sem="relaxed")
    for k in tl.static_range(K):
        tl.atomic_add(state + BELOW * MOST + k, tl.sum(below[k], 0).to(tl.int64), sem="relaxed")


def sweep(counts: Counts, marked: tuple[Tensor, Tensor, Tensor], vectors: Vectors, room: int, first_bad: Tensor) -> int:
    """Writes the marked entries, and counts into the state; returns how many entries were counted."""
    n, size = vectors.a.numel(), SWEEP_ROWS * SWEEP_COLUMNS
    blocks = triton.cdiv(n, size)
    sweep_kernel[vectors.programs(size, PROGRAMS)](
        counts.state, *marked, *vectors.arguments, first_bad, n, blocks, room,
        HAS_B=vectors.b is not None, K=vectors.alphas.numel(), ROWS=SWEEP_ROWS, COLUMNS=SWEEP_COLUMNS,
        num_warps=SWEEP_COLUMNS // 32, enable_fp_fusion=False,
    )  # fmt: skip
    return blocks * size
