"""What the engine's operations refuse: activations whose sizes, patches or memory do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lpk.sparse.blocks import IMAGES, Blocks, Pair
from lpk.sparse.packing import Convolution, reach
from lpk.sparse.steps import Heads


def check_same(name: str, x: Blocks, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, not {list(x.shape)}")


def check_like(name: str, x: Blocks, other: Blocks) -> None:
    check_same(name, x, other.shape)
    check_cut(name, x, other)


def check_cut(name: str, x: Blocks, other: Blocks) -> None:
    if (x.patches, x.patch) != (other.patches, other.patch):
        raise ValueError(
            f"{name} must be cut into {other.patches} patches of {other.patch}, not {x.patches} of {x.patch}"
        )


def check_factor(x: Blocks, y: Blocks) -> None:
    """y is multiplied by x, pixel by pixel, or is one pixel that all of an image's are multiplied by."""
    if y.shape == (*x.shape[:2], 1, 1) and y.patches == (1, 1):
        return
    check_like("y", y, x)


def check_picked(x: Blocks, out: Blocks, channels: Tensor) -> None:
    if channels.dtype != torch.int64 or channels.dim() != 1 or channels.device.type != "cpu":
        raise TypeError(f"channels must be an int64 vector on the CPU, not {channels.dtype} {list(channels.shape)}")
    batch, count, height, width = x.shape
    if len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < count:
        raise ValueError(f"channels must be from 0 to {count - 1}, not {int(channels.min())} to {int(channels.max())}")
    check_same("out", out, (batch, len(channels), height, width))
    check_cut("out", out, x)


def check_attention(
    query: Blocks, key: Blocks, value: Blocks, out: Blocks, heads: Sequence[Heads], count: int, size: int
) -> None:
    if len(heads) != 3 or count < 1 or size < 1:
        raise ValueError(f"{count} heads of {size} numbers, of {len(heads)} values")
    for name, x, where in zip(("query", "key", "value"), (query, key, value), heads, strict=True):
        if x.patches[0] * x.patches[1] != IMAGES:
            raise ValueError(f"{name} must be cut into {IMAGES} patches, not {x.patches}")
        channels = [where.first + h * where.head + i * where.step for h in (0, count - 1) for i in (0, size - 1)]
        if not 0 <= min(channels) <= max(channels) < x.shape[1]:
            raise ValueError(
                f"the heads of {name} are channels {min(channels)} to {max(channels)}, and it has {x.shape[1]}"
            )
        check_apart(name, x, out)
    batch, _, height, width = query.shape
    check_same("out", out, (batch, count * size, height, width))
    check_cut("out", out, query)
    if key.batch != batch:
        raise ValueError(f"key must have {batch} samples, not {key.batch}")
    check_same("value", value, (batch, value.shape[1], *key.shape[2:]))
    check_cut("value", value, key)


def check_whole(x: Blocks) -> None:
    if x.patches != (1, 1):
        raise ValueError("the images must not be cut into patches")


def check_convolution(convolution: Convolution, x: Blocks, out: Blocks) -> None:
    batch, channels, height, width = x.shape
    if channels != convolution.channels:
        raise ValueError(f"the convolution has {convolution.channels} input channels, x has {channels}")
    if x.border < max(*convolution.padding, *(convolution.behind or (0, 0))):
        raise ValueError(f"the border of x is {x.border}, but the padding is {convolution.padding}")
    check_apart("x", x, out)
    check_same("out", out, (batch, convolution.filters, *convolution.output_size(height, width)))
    check_patches(x, out, convolution.stride)
    if x.patches != (1, 1) and x.border < max(convolution.reach):
        raise ValueError(f"the border of x is {x.border}, but windows reach {convolution.reach} beyond a patch")


def check_patches(x: Blocks, out: Blocks, stride: Pair) -> None:
    """Every patch of out must come from the same patch of x."""
    if x.patches == out.patches == (1, 1):
        return
    wanted = tuple(s * n for s, n in zip(stride, out.patch, strict=True))
    if x.patches != out.patches or x.patch != wanted:
        raise ValueError(
            f"{x.patches} patches of {x.patch} do not make {out.patches} of {out.patch} with stride {stride}"
        )


def check_apart(name: str, x: Blocks, out: Blocks, *, may_be: bool = False) -> None:
    """No memory of x may be out's, unless x is out, where it may be. Slices of one tensor's channels are apart."""
    a, b = x.data, out.data
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return
    if may_be and (a.data_ptr(), a.shape, x.border) == (b.data_ptr(), b.shape, out.border):
        return
    if _overlap([*_pieces(a, 1), *_pieces(b, 1)]) and _overlap([*_pieces(a, 2), *_pieces(b, 2)]):
        raise ValueError(f"out must not overlap {name}")


def _pieces(data: Tensor, outer: int) -> Iterator[tuple[int, int]]:
    """Start and length of the memory of each block or, outer = 2, of each of its rows."""
    blocks, rows = data.transpose(1, 2).shape[:2] if outer == 2 else (len(data), 1)
    piece = data[0, :, 0] if outer == 2 else data[0]
    length = 1 + sum((n - 1) * stride for n, stride in zip(piece.shape, piece.stride(), strict=True))
    for block in range(blocks):
        for row in range(rows):
            yield int(data.storage_offset()) + block * data.stride(0) + row * data.stride(2), length


def _overlap(pieces: list[tuple[int, int]]) -> bool:
    return any(start + length > following for (start, length), (following, _) in pairwise(sorted(pieces)))


def check_window(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    if (
        min(*kernel, *stride, *dilation) < 1
        or min(padding) < 0
        or any(2 * p > k for p, k in zip(padding, kernel, strict=True))
    ):
        raise ValueError(f"a window of {kernel} with stride {stride}, padding {padding} and dilation {dilation}")


def check_pool(x: Blocks, out: Blocks, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """out is what PyTorch returns, or with ceil_mode: every window starts inside the image or the padding before it."""
    for n, m, k, s, p, d in zip(x.shape[2:], out.shape[2:], kernel, stride, padding, dilation, strict=True):
        fits = (n + 2 * p - d * (k - 1) - 1) // s + 1
        if not (fits <= m <= fits + 1 and (m - 1) * s < n + p) or m < 1:
            raise ValueError(f"windows of {k} at a stride of {s} over {n} pixels make {fits} outputs, not {m}")
    if x.shape[:2] != out.shape[:2]:
        raise ValueError(f"out must have {x.shape[:2]} images and channels, not {out.shape[:2]}")
    check_patches(x, out, stride)
    if x.patches != (1, 1) and x.border < max(*padding, *reach(kernel, stride, padding, dilation)):
        raise ValueError(f"the border of x is {x.border}, and windows of {kernel} reach beyond it")
    check_apart("x", x, out)
