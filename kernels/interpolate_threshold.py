"""For each coefficient the keep-th largest |x|, and the index of the last entry of that magnitude that survives.

A magnitude's key is its bit pattern, which orders as the magnitude does. For each coefficient:

1. A fixed-seed sample brackets the threshold's key: low <= key <= high, but for bad luck (SIGMAS in
   threshold_bracket.py).
2. A sweep over a and b counts the keys above the bracket, and those inside it in equal bins. One bin holds the
   threshold; it is the next bracket. If the sample misled and no bin does, the next bracket is all keys. As many sweeps
   are launched as this could take; once each bin is a single key, the remaining ones return at once
   (threshold_histogram.py).
3. A last sweep counts the threshold's key in each group of blocks; the one that holds the last survivor is searched
   (threshold_last.py).

Keys inside a bracket are counted one by one with atomic additions: a few percent, seldom the same bin. Where a bracket
ends in a heavy tie (zeros, constant vectors), its ends are counted by block. Sums of whole numbers do not depend on the
order, so the result never varies.

What is past a vector's end in its last block reads as zeros: they are the lowest magnitudes, and of zeros the last, so
no threshold changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpk.kernels.elements import device_of
from lpk.kernels.threshold import Vectors
from lpk.kernels.threshold_bracket import bracket
from lpk.kernels.threshold_histogram import bin_bits, narrow
from lpk.kernels.threshold_last import last_survivors

MOST_COEFFICIENTS = 16  # of one sweep; more are done in turns


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
        found = [_select(Vectors(a, b, some), keep, first_bad) for some in alphas.split(MOST_COEFFICIENTS)]
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


def _select(vectors: Vectors, keep: int, first_bad: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold, float32 [K], and the index of the last survivor of that magnitude, int64 [K]."""
    bits = bin_bits(vectors.a.numel(), vectors.key_bits)
    brackets = bracket(vectors, keep, bits)
    survivors = narrow(brackets, vectors, keep, bits, first_bad)
    values = _magnitude(brackets.low, vectors.a.dtype)
    if keep == 0:  # the sweep only looked for what is not finite
        return values, survivors
    return values, last_survivors(vectors, values, survivors)
