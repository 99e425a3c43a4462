"""Where the last survivor of each threshold's magnitude stands."""
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpk.kernels.elements import BLOCK, OPTIONS, indices, load, mix
from lpk.kernels.threshold import (
    COUNT_BLOCK,
    COUNT_OPTIONS,
    Vectors,
    add,
    counting_blocks,
    counting_programs,
    locate,
)

GROUPS = 4096  # of blocks, in which the threshold's key is counted


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


def last_survivors(vectors: Vectors, values: Tensor, survivors: Tensor) -> Tensor:
    """The index of the survivors-th entry whose magnitude is the value, for each coefficient: int64 [K]."""
    n, K, device = vectors.a.numel(), vectors.alphas.numel(), vectors.a.device
    has_b, blocks = vectors.b is not None, counting_blocks(n)
    group_blocks = triton.cdiv(blocks, GROUPS)
    last = torch.empty(K, dtype=torch.int64, device=device)
    counts = torch.zeros(K, GROUPS, dtype=torch.int32, device=device)
    count_equal_kernel[counting_programs(n)](
        counts, *vectors.arguments, values, n, blocks, group_blocks, K,
        HAS_B=has_b, GROUPS=GROUPS, BLOCK=COUNT_BLOCK, **COUNT_OPTIONS,
    )  # fmt: skip
    find_kernel[(K,)](
        last, counts, *vectors.arguments, values, survivors, n, group_blocks * COUNT_BLOCK,
        HAS_B=has_b, GROUPS=GROUPS, BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip
    return last
