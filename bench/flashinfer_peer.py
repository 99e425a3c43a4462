"""FlashInfer's top_k as a peer, in the mode that prefers the smaller index. Vectors are float32 CUDA tensors.

For more than 2,048 of a row that mode is CUB's DeviceBatchedTopK, which takes rows of up to 2^21 entries. Longer ones
are not tried without it: FlashInfer's own kernel keeps a row in the shared memory of blocks that wait for each other,
and 2^24 entries need more blocks than an H100 runs at a time, so that, as its source reads, they would wait for ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 2**21


def threshold(a: Tensor, b: Tensor, alpha: float, keep: int) -> Tensor:
    magnitudes, _ = largest(torch.lerp(b, a, alpha), keep)
    return magnitudes.min()


def mask(x: Tensor, keep: int) -> Tensor:
    survives = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    survives[largest(x, keep)[1]] = True
    return survives


def prune(a: Tensor, b: Tensor, alpha: float, keep: int) -> Tensor:
    x = torch.lerp(b, a, alpha)
    return x.mul_(mask(x, keep))


def largest(x: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The largest |x| and where they stand, [keep] each. Raises NotImplementedError for what FlashInfer can't do."""
    if len(x) > LONGEST:
        raise NotImplementedError(f"FlashInfer's top_k with a preferred index takes up to {LONGEST:,} entries")
    if torch.cuda.get_device_capability(x.device) < (9, 0):
        raise NotImplementedError("FlashInfer's top_k with a preferred index needs compute capability 9.0")
    import flashinfer

    if not hasattr(flashinfer.topk, "can_use_cub_topk"):
        raise NotImplementedError(f"FlashInfer {flashinfer.__version__} has no top_k by CUB; 0.7.2 does")
    magnitudes, indices = flashinfer.top_k(x.abs()[None], keep, tie_break=flashinfer.TopKTieBreak.SMALL)
    return magnitudes[0], indices[0]
