"""The inference engine's operations on tensors: float32 on CPU, without gradients.

Activations are stored in blocks of 16 images with the batch innermost (`Blocks`); csrc/cpu/engine/engine.h says more.
Outputs are given, and only their interior is written: a plan allocates each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from lpk import _core
from lpk.ops.memory import address, resolved
from lpk.sparse.blocks import Blocks, Pair, check_floats
from lpk.sparse.checks import (
    check_apart,
    check_attention,
    check_convolution,
    check_factor,
    check_like,
    check_picked,
    check_pool,
    check_same,
    check_whole,
    check_window,
)
from lpk.sparse.packing import (
    CompiledFilters,
    DepthwiseFilters,
    Filters,
    LaneFilters,
    SparseFilters,
    WinogradFilters,
    input_strides,
)
from lpk.sparse.steps import Heads

ACTIVATIONS = {
    "identity": 0,
    "relu": 1,
    "relu6": 2,
    "silu": 3,
    "hardswish": 4,
    "hardsigmoid": 5,
    "sigmoid": 6,
    "tanh": 7,
    "gelu": 8,
    "gelu tanh": 9,  # the approximation
    "leaky relu": 10,
    "elu": 11,
}


@dataclass(frozen=True)
class Operation:
    """An operation whose arguments were checked; `run` runs it, any number of times."""

    handle: _core.Operation
    out: Blocks
    alive: tuple[Any, ...]  # what the addresses in it belong to


def run(operations: Sequence[Operation], threads: int | None = None) -> None:
    """One after the other, for all blocks. threads: as many as what has its memory by thread was made for."""
    _core.run([operation.handle for operation in operations], threads or torch.get_num_threads())


def seconds(operations: Sequence[Operation], threads: int | None = None) -> list[float]:
    """Runs them and returns how long each took: the mean of the threads where these have blocks of their own."""
    return _core.seconds([operation.handle for operation in operations], threads or torch.get_num_threads())


def per_channel(name: str, x: Tensor | None, channels: int) -> Tensor | None:
    """One float for each channel, in memory of its own: an operation keeps the address, and what belongs to a model
    moves when that is shared with another process, for instance."""
    if x is None:
        return None
    check_floats(name, x, (channels,))
    return resolved(name, x.detach()).clone(memory_format=torch.contiguous_format)


def ending(
    scale: Tensor | None, shift: Tensor | None, residual: Blocks | None, activation: str, slope: float
) -> _core.Ending:
    added = None if residual is None else residual.handle
    first, second = address("scale", scale), address("bias", shift)
    kind = ACTIVATIONS[activation]
    return _core.Ending(scale=first, bias=second, residual=added, activation=kind, slope=slope)


def pack_input(x: Tensor, out: Blocks) -> Blocks:
    """An ordinary tensor [batch, channels, height, width] of any strides, into blocks."""
    check_floats("x", x)
    check_same("out", out, tuple(x.shape))
    x = resolved("x", x)
    _core.pack_input(out.handle, address("x", x), out.batch, x.stride(), torch.get_num_threads())
    if out.patches != (1, 1) and out.border > 0:
        _core.run([out.exchange], torch.get_num_threads())
    return out


def prepare_unpack(x: Blocks, *, last: bool = False) -> tuple[Tensor, Callable[[], None]]:
    """An ordinary tensor [batch, channels, height, width], contiguous or, last, with its channels innermost in memory;
    and what copies the blocks into it."""
    batch, channels, height, width = x.shape
    if last:
        out = torch.empty((batch, height, width, channels), dtype=torch.float32, device="cpu").permute(0, 3, 1, 2)
    else:
        out = torch.empty(x.shape, dtype=torch.float32, device="cpu")
    where, threads = address("out", out), torch.get_num_threads()
    return out, partial(_core.unpack_output, where, x.handle, batch, out.stride(), threads)


def unpack_output(x: Blocks, *, last: bool = False) -> Tensor:
    """What `prepare_unpack` makes, filled in."""
    out, fill = prepare_unpack(x, last=last)
    fill()
    return out


def prepare_convolution(
    filters: Filters,
    x: Blocks,
    out: Blocks,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Blocks | None = None,
    activation: str = "identity",
    slope: float = 0.0,
) -> Operation:
    """out = activation(convolution of x · scale of the filter + bias of the filter + residual).

    The residual may be out. slope: of leaky relu, and elu's alpha.
    """
    check_convolution(filters.convolution, x, out)
    if not isinstance(filters, WinogradFilters) and input_strides(x, filters.convolution) != filters.strides:
        raise ValueError("the filters were packed for inputs of another height, width or border")
    scale = per_channel("scale", scale, filters.convolution.filters)
    bias = per_channel("bias", bias, filters.convolution.filters)
    if residual is not None:
        check_like("residual", residual, out)
        check_apart("residual", residual, out, may_be=True)
    common = (out.handle, x.handle, filters.convolution.handle)
    end = ending(scale, bias, residual, activation, slope)
    alive = (filters, x, scale, bias, residual)
    if isinstance(filters, SparseFilters):
        where, work = (address("entries", filters.entries), address("start", filters.start)), filters.work.data_ptr()
        handle = _core.sparse_convolution(*common, *where, work, filters.channels_per_block, filters.gathered, end)
    elif isinstance(filters, CompiledFilters):
        handle = _core.compiled_convolution(*common, filters.code, end)
    elif isinstance(filters, DepthwiseFilters):
        where = address("entries", filters.entries), address("start", filters.start)
        handle = _core.depthwise_convolution(*common, *where, end)
    elif isinstance(filters, WinogradFilters):
        handle = _core.winograd_convolution(*common, address("weights", filters.weights), filters.together, end)
    elif isinstance(filters, LaneFilters):
        if out.patch != (1, 1):
            raise ValueError(f"the filters are for outputs of one pixel, not {out.patch}")
        where, lanes = (address("weights", filters.weights), address("offsets", filters.offsets)), out.lanes
        handle = _core.lane_convolution(*common, *where, filters.together, lanes, end)
    else:
        where = address("weights", filters.weights), address("offsets", filters.offsets)
        handle = _core.dense_convolution(*common, *where, end)
    return Operation(handle, out, alive)


def prepare_exchange_borders(x: Blocks) -> Operation:
    """Fills the borders of patches with the pixels of their neighbours, and with zeros what lies outside the image."""
    return Operation(x.exchange, x, ())


def channel_statistics(x: Blocks) -> tuple[Tensor, Tensor]:
    """The mean and the unbiased variance of each channel over the images and pixels, in float64."""
    check_whole(x)
    mean, variance = torch.empty(2, x.shape[1], dtype=torch.float64, device="cpu").unbind()
    _core.channel_statistics(
        address("mean", mean), address("variance", variance), x.handle, x.batch, torch.get_num_threads()
    )
    return mean, variance


def prepare_scale_shift(
    x: Blocks,
    out: Blocks,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Blocks | None = None,
    activation: str = "identity",
    slope: float = 0.0,
) -> Operation:
    """out = activation(x · scale of the channel + shift of the channel + residual). out may be x or the residual."""
    check_like("out", out, x)
    check_apart("x", x, out, may_be=True)
    if residual is not None:
        check_like("residual", residual, x)
        check_apart("residual", residual, out, may_be=True)
    scale, shift = per_channel("scale", scale, x.shape[1]), per_channel("shift", shift, x.shape[1])
    handle = _core.scale_shift(out.handle, x.handle, ending(scale, shift, residual, activation, slope))
    return Operation(handle, out, (x, scale, shift, residual))


def prepare_multiply(
    x: Blocks, y: Blocks, out: Blocks, *, activation: str = "identity", slope: float = 0.0
) -> Operation:
    """out = activation(x · y). y is like x, or [batch, channels, 1, 1] and not cut: a factor for all pixels. out may be
    x."""
    check_like("out", out, x)
    check_apart("x", x, out, may_be=True)
    check_factor(x, y)
    check_apart("y", y, out, may_be=True)
    handle = _core.multiply(out.handle, x.handle, y.handle, ACTIVATIONS[activation], slope)
    return Operation(handle, out, (x, y))


def prepare_layer_norm(
    x: Blocks, out: Blocks, *, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Operation:
    """nn.LayerNorm over the channels, for each pixel. out may be x."""
    check_like("out", out, x)
    check_apart("x", x, out, may_be=True)
    weight, bias = per_channel("weight", weight, x.shape[1]), per_channel("bias", bias, x.shape[1])
    handle = _core.layer_norm(out.handle, x.handle, address("weight", weight), address("bias", bias), eps)
    return Operation(handle, out, (x, weight, bias))


def prepare_attention(
    query: Blocks,
    key: Blocks,
    value: Blocks,
    out: Blocks,
    heads: Sequence[Heads],
    count: int,
    size: int,
    scale: float,
) -> Operation:
    """out = softmax(scale · queries · keys) · values, of `count` heads of `size` numbers each; heads: of query, key and
    value. Channel h · size + i of out is number i of head h.

    Tokens are pixels, and each sample is cut into 16 patches. There may be other tokens of keys and values than of
    queries.
    """
    check_attention(query, key, value, out, heads, count, size)
    where = [(each.first, each.head, each.step) for each in heads]
    handle = _core.attention(out.handle, query.handle, key.handle, value.handle, where, count, size, scale)
    return Operation(handle, out, (query, key, value))


def prepare_pick(x: Blocks, out: Blocks, channels: Tensor) -> Operation:
    """Channel i of out is channel channels[i] of x."""
    check_picked(x, out, channels)
    check_apart("x", x, out)
    channels = channels.detach().clone(memory_format=torch.contiguous_format)
    return Operation(_core.pick_channels(out.handle, x.handle, address("channels", channels)), out, (x, channels))


def prepare_relayout(x: Blocks, out: Blocks, stride: Pair = (1, 1)) -> Operation:
    """The same pixels in their order, cut into other patches or as images of another height and width; with a stride,
    of every so many rows and columns the first. Pixels outside the image, and lanes without one, stay as they are or
    become what they are in x."""
    batch, channels, height, width = out.shape
    high, wide = (-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
    as_wide = width == wide or stride == (1, 1)
    if x.shape[:2] != (batch, channels) or high * wide != height * width or not as_wide:
        raise ValueError(
            f"out must have the images, channels and number of pixels of {list(x.shape)} with stride {stride}, "
            f"not {list(out.shape)}"
        )
    check_apart("x", x, out)
    return Operation(_core.relayout(out.handle, x.handle, batch, stride), out, (x,))


def pool_input(x: Blocks, padding: Pair) -> tuple[_core.Activations, Pair]:
    """What the windows slide over, and its padding: of patches, the border is a part."""
    if x.patches == (1, 1):
        return x.handle, padding
    return x.with_border, (padding[0] - x.border, padding[1] - x.border)


def prepare_max_pool(
    x: Blocks, out: Blocks, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> Operation:
    """Outside the image -inf is read; of patches their `outside`: zero is the same where nothing is negative."""
    check_window(kernel, stride, padding, dilation)
    check_pool(x, out, kernel, stride, padding, dilation)
    seen, padding = pool_input(x, padding)
    window = _core.Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    return Operation(_core.max_pool(out.handle, seen, window), out, (x,))


def prepare_average_pool(
    x: Blocks, out: Blocks, kernel: Pair, stride: Pair, padding: Pair = (0, 0), *, count_padding: bool = True
) -> Operation:
    """Of patches, windows must not overlap."""
    check_window(kernel, stride, padding, (1, 1))
    check_pool(x, out, kernel, stride, padding, (1, 1))
    if x.patches != (1, 1) and (max(padding) > 0 or any(k > s for k, s in zip(kernel, stride, strict=True))):
        raise ValueError(f"windows of {kernel} overlap with stride {stride} and padding {padding}")
    seen, padding = pool_input(x, padding)
    window = _core.Window(kernel=kernel, stride=stride, padding=padding, dilation=(1, 1))
    return Operation(_core.average_pool(out.handle, seen, window, count_padding), out, (x,))


def prepare_global_average_pool(x: Blocks, out: Blocks) -> Operation:
    """The mean over all pixels of an image. x may be cut into patches, out is not."""
    check_same("out", out, (*x.shape[:2], 1, 1))
    check_whole(out)
    check_apart("x", x, out)
    return Operation(_core.global_average_pool(out.handle, x.handle), out, (x,))


Arguments = ParamSpec("Arguments")


def at_once(prepare: Callable[Arguments, Operation]) -> Callable[Arguments, Blocks]:
    """The operation run as soon as it is prepared; returns its output."""

    @wraps(prepare)
    def prepare_and_run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Blocks:
        operation = prepare(*args, **kwargs)
        run([operation])
        return operation.out

    return prepare_and_run


convolution = at_once(prepare_convolution)
exchange_borders = at_once(prepare_exchange_borders)
scale_shift = at_once(prepare_scale_shift)
multiply = at_once(prepare_multiply)
layer_norm = at_once(prepare_layer_norm)
attention = at_once(prepare_attention)
pick = at_once(prepare_pick)
relayout = at_once(prepare_relayout)
max_pool = at_once(prepare_max_pool)
average_pool = at_once(prepare_average_pool)
global_average_pool = at_once(prepare_global_average_pool)
