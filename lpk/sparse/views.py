"""Which of PyTorch's views of a value are that value, seen in another way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lpk.sparse.steps import Heads, Seen, Shape

Layout = tuple[Shape, bool, int]  # Seen without its value


def viewed(seen: Seen, size: int, view: Callable[[Tensor], Tensor]) -> Layout | None:
    """How what `view` makes of a value is seen, for a batch of this size; None where that is no order of the engine's.

    It is tried on a tensor without values whose memory has the channels innermost: such a tensor is a view of the value
    in every order that the engine knows.
    """
    channels, pixels = seen.value.channels, seen.value.pixels
    memory = torch.empty(size, pixels, channels, dtype=torch.float32, device="meta")
    given = memory if seen.last else memory.transpose(1, 2)
    made = view(given.view(size * seen.times, *seen.shape))
    if made.untyped_storage()._cdata != memory.untyped_storage()._cdata or made.numel() != memory.numel():
        return None
    rows, *shape = made.shape
    if not shape or rows % size:
        return None
    if made.is_contiguous() and shape[-1] == channels:
        return tuple(shape), True, rows // size
    if rows == size and shape[0] == channels and made.movedim(1, -1).is_contiguous():
        return tuple(shape), False, 1
    return None


def heads_in(seen: Seen, size: int, view: Callable[[Tensor], Tensor]) -> tuple[Heads, int, int] | None:
    """Where the heads lie in a value of which `view` makes queries, keys or values [B, heads, tokens, numbers], how
    many there are, and of how many numbers; None where it makes something else."""
    channels, pixels = seen.value.channels, seen.value.pixels
    memory = torch.empty(size, pixels, channels, dtype=torch.float32, device="meta")
    given = memory if seen.last else memory.transpose(1, 2)
    made = view(given.view(size * seen.times, *seen.shape))
    if made.untyped_storage()._cdata != memory.untyped_storage()._cdata or made.dim() != 4:
        return None
    rows, count, tokens, numbers = made.shape
    sample, head, token, step = made.stride()
    first = int(made.storage_offset())
    heads = Heads(first, head if count > 1 else 0, step if numbers > 1 else 0)
    last = first + (count - 1) * heads.head + (numbers - 1) * heads.step
    is_all = rows == size and tokens == pixels and token == channels and (sample == pixels * channels or size == 1)
    return (heads, count, numbers) if is_all and last < channels else None


def packed_image(shape: Shape, last: bool, times: int) -> tuple[int, int, int] | None:
    """The image that rows [times, *shape] of each sample are stored as; None where there is none."""
    if last:
        if len(shape) == 3 and times == 1:
            return shape[2], shape[0], shape[1]
        return shape[-1], 1, times * math.prod(shape[:-1])
    if times != 1 or len(shape) not in (1, 3):
        return None
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    return channels, height, width


def as_tensor(stored: Tensor, seen: Seen) -> Tensor:
    """What PyTorch sees of images [B, C, H, W]; with `last`, their channels are innermost in memory."""
    if seen.last:
        return stored.permute(0, 2, 3, 1).reshape(len(stored) * seen.times, *seen.shape)
    return stored.reshape(len(stored), *seen.shape)


def as_images(tensor: Tensor, seen: Seen) -> Tensor:
    """The images [B, C, H, W] of a tensor that PyTorch sees so."""
    channels, height, width = seen.value.image
    if seen.last:
        return tensor.reshape(len(tensor) // seen.times, height, width, channels).permute(0, 3, 1, 2)
    return tensor.reshape(len(tensor), channels, height, width)
