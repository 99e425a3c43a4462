"""How the inference engine stores activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lpk import _core
from lpk.ops.checks import has_gradient
from lpk.ops.memory import address

IMAGES = 16  # in a block
Pair = tuple[int, int]


@dataclass(frozen=True)
class Blocks:
    """The activations of `batch` images: [blocks, channels, height + 2 border, width + 2 border, 16].

    In memory a row of all channels lies together (`in_rows`); the engine takes other strides, too. A slice of the
    channels of larger blocks is one: `Blocks(whole.data[:, 3:7], whole.batch, whole.border)`. The border must be zero.

    With patches (rows, columns), an image of size `image` is cut into that many equal patches, and each lane of a
    block is a patch of height x width: lane (i · rows + r) · columns + c is patch (r, c) of the block's image i. The
    last patches may reach beyond the image. `exchange_borders` fills the border.

    by_thread: data has memory for one block of each thread, which takes its blocks one after the other through all
    operations that read them (csrc/cpu/engine/operation.h).

    Native code remembers the address of `data`, whose memory must stay where it is.
    """

    data: Tensor
    batch: int
    border: int
    patches: Pair = (1, 1)
    image: Pair | None = None  # height and width; None: that of all patches
    outside: float = 0.0  # what patches hold outside the image
    by_thread: bool = False

    def __post_init__(self) -> None:
        data, border = self.data, self.border
        check_floats("data", data)
        if data.dim() != 5 or data.shape[-1] != IMAGES:
            raise ValueError(f"data must be [blocks, channels, height, width, {IMAGES}], not {list(data.shape)}")
        height, width = data.shape[2:4]
        if border < 0 or height <= 2 * border or width <= 2 * border:
            raise ValueError(f"a border of {border} leaves no pixels of {height} x {width}")
        if min(self.patches) < 1 or IMAGES % (self.patches[0] * self.patches[1]):
            raise ValueError(f"{IMAGES} lanes can't hold whole images of {self.patches[0]} x {self.patches[1]} patches")
        if any(n > m for n, m in zip(self.shape[2:], self.covered, strict=True)):
            raise ValueError(f"the patches cover {self.covered} pixels, fewer than the image {self.image}")
        if self.batch < 1 or not (data.shape[0] == self.blocks or (self.by_thread and 0 < len(data) < self.blocks)):
            raise ValueError(f"{self.batch} images are not stored in {data.shape[0]} blocks")
        if not _is_laid_out(data):
            raise ValueError("data must hold pixels in rows, and rows and channels that do not overlap")
        if address("data", data) % 64:
            raise ValueError("data must lie at a multiple of 64 bytes")
        if data[0].numel() >= 2**31:
            raise ValueError("one block of images must have less than 2^31 elements")

    def channels(self, first: int, last: int) -> Blocks:
        """Those from first to last - 1, in the same memory."""
        return replace(self, data=self.data[:, first:last])

    @property
    def blocks(self) -> int:
        """How many there are."""
        return block_count(self.batch, self.patches)

    @property
    def patch(self) -> Pair:
        """Height and width of a patch; of the image, where it is not cut."""
        return self.data.shape[2] - 2 * self.border, self.data.shape[3] - 2 * self.border

    @property
    def covered(self) -> Pair:
        """Height and width of all patches together."""
        return self.patches[0] * self.patch[0], self.patches[1] * self.patch[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, channels, height and width, as of an ordinary tensor."""
        return self.batch, self.data.shape[1], *(self.image or self.covered)

    @property
    def lanes(self) -> int:
        """How many hold an image or a patch, of those of all blocks."""
        return self.batch * self.patches[0] * self.patches[1]

    @cached_property
    def handle(self) -> _core.Activations:
        return self._handle(self.border)

    @cached_property
    def with_border(self) -> _core.Activations:
        """The border as part of what is seen."""
        return self._handle(0)

    @cached_property
    def exchange(self) -> _core.Operation:
        """Fills the borders of patches, as `kernels.exchange_borders` does."""
        return _core.exchange_borders(self.handle, self.outside)

    def _handle(self, border: int) -> _core.Activations:
        channels, height, width = self.data.shape[1:4]
        return _core.Activations(
            data=address("data", self.data), blocks=self.blocks, channels=channels, height=height - 2 * border,
            width=width - 2 * border, border=border, block_stride=self.data.stride(0),
            channel_stride=self.data.stride(1), row_stride=self.data.stride(2), patches=self.patches,
            image=self.shape[2:], by_thread=self.by_thread,
        )  # fmt: skip


def empty_blocks(
    batch: int,
    channels: int,
    height: int,
    width: int,
    border: int = 0,
    *,
    patches: Pair = (1, 1),
    patch: Pair | None = None,
) -> Blocks:
    """Blocks of zeros. `patch`: the size of a patch; None: the smallest that is possible."""
    high, wide = patch or (-(-height // patches[0]), -(-width // patches[1]))
    shape = stored_shape(batch, channels, border, patches, (high, wide))
    data = in_rows(torch.zeros(math.prod(shape), dtype=torch.float32, device="cpu").view(shape[0], -1), shape)
    return Blocks(data, batch, border, patches, (height, width))


def stored_shape(batch: int, channels: int, border: int, patches: Pair, patch: Pair) -> tuple[int, ...]:
    """Of the data of blocks."""
    return block_count(batch, patches), channels, patch[0] + 2 * border, patch[1] + 2 * border, IMAGES


def in_rows(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[blocks, n], each contiguous, as data of this shape: a row of all channels lies together."""
    _, channels, height, width, images = shape
    return memory.unflatten(1, (height, channels, width, images)).transpose(1, 2)


def _is_laid_out(data: Tensor) -> bool:
    _, channels, height, width, images = data.shape
    channel, row, *inner = data.stride()[1:]
    floats = width * images
    in_rows = channel >= floats and row >= (channels - 1) * channel + floats
    in_channels = row >= floats and channel >= (height - 1) * row + floats
    return inner == [images, 1] and (in_rows or in_channels or channels == 1 or height == 1)


def block_count(batch: int, patches: Pair = (1, 1)) -> int:
    return -(-batch * patches[0] * patches[1] // IMAGES)


def check_floats(name: str, x: Tensor, shape: tuple[int, ...] | None = None) -> None:
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"{name} must be float32 on the CPU, not {x.dtype} on {x.device}")
    if has_gradient(x):
        raise RuntimeError(f"{name} requires grad; detach it, or run under torch.no_grad()")
    if shape is not None and tuple(x.shape) != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, not {list(x.shape)}")
