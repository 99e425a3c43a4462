"""x = fma(alpha, a, beta * b), element by element."""
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, indices, is_bad, load, mix, report


@triton.jit
def interpolate_kernel(out, a, b, alpha, first_bad, n, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    i = indices(block, BLOCK)
    inside = i < n
    of_a, of_b = load(a, b, i, inside, True)
    x = mix(of_a, of_b, tl.load(alpha), True)
    report(first_bad, is_bad(x) & inside, block, BLOCK)
    tl.store(out + i, x, mask=inside)


def interpolate(out: Tensor, a: Tensor, b: Tensor, alpha: Tensor, first_bad: Tensor) -> None:
    """out = alpha * a + (1 - alpha) * b (equation 1).

    Args:
        out, a, b: vectors [n] of float32, float16 or bfloat16; `out` may be `a` or `b`.
        alpha: float32 [1].
        first_bad: int64 [1], lowered to the index of the first x that is NaN or infinite.
    """
    n = a.numel()
    if n == 0:
        return
    interpolate_kernel[(triton.cdiv(n, BLOCK),)](out, a, b, alpha, first_bad, n, BLOCK=BLOCK, **OPTIONS)
