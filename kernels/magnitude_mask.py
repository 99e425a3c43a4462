"""Which entries survive a threshold."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, indices, is_bad, report, survives


@triton.jit
def magnitude_mask_kernel(out, x, value, last, first_bad, n, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    i = indices(block, BLOCK)
    inside = i < n
    own = tl.load(x + i, mask=inside, other=0.0)
    report(first_bad, is_bad(own) & inside, block, BLOCK)
    tl.store(out + i, survives(own, i, tl.load(value), tl.load(last)), mask=inside)


def magnitude_mask(out: Tensor, x: Tensor, value: Tensor, last: Tensor, first_bad: Tensor) -> None:
    """out_i = whether |x_i| > value, or |x_i| = value and i <= last.

    Args:
        out: bool [n].
        x: vector [n] of float32, float16 or bfloat16.
        value, last: float32 [1] and int64 [1].
        first_bad: int64 [1], lowered to the index of the first x that is NaN or infinite.
    """
    n = x.numel()
    if n == 0:
        return
    magnitude_mask_kernel[(triton.cdiv(n, BLOCK),)](out, x, value, last, first_bad, n, BLOCK=BLOCK, **OPTIONS)
