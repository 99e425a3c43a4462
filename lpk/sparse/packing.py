"""The weights of a convolution as the inference engine reads them: in the form that takes the least time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lpk import _core
from lpk.ops.memory import address, resolved
from lpk.sparse.blocks import Blocks, Pair, check_floats

FILTER_WORK = 4  # what a filter costs in a block besides its entries, in entries


@dataclass(frozen=True)
class Convolution:
    """What is computed, for weights [filters, channels / groups, *kernel]."""

    filters: int
    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    behind: Pair | None = None  # padding behind the image's end; None: as before its start

    def __post_init__(self) -> None:
        at_least_1 = [self.filters, self.channels, self.groups, *self.kernel, *self.stride, *self.dilation]
        if min(at_least_1) < 1 or min(self.padding) < 0:
            raise ValueError(f"a size of {self} is too small")
        if self.filters % self.groups or self.channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.filters} filters and {self.channels} channels")

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels // self.groups, *self.kernel

    def output_size(self, height: int, width: int) -> Pair:
        behind = self.padding if self.behind is None else self.behind
        sizes = zip((height, width), self.kernel, self.stride, self.padding, behind, self.dilation, strict=True)
        high, wide = ((n + p + q - d * (k - 1) - 1) // s + 1 for n, k, s, p, q, d in sizes)
        return high, wide

    @property
    def reach(self) -> Pair:
        """How far the windows of a patch reach behind its end, in pixels."""
        return reach(self.kernel, self.stride, self.padding, self.dilation)

    @cached_property
    def handle(self) -> _core.Convolution:
        return _core.Convolution(
            filters=self.filters, channels=self.channels, groups=self.groups, kernel=self.kernel, stride=self.stride,
            padding=self.padding, dilation=self.dilation,
        )  # fmt: skip


@dataclass(frozen=True)
class SparseFilters:
    """The weights of a convolution that are not zero, for inputs with the strides of one it was packed for."""

    convolution: Convolution
    entries: Tensor  # [n, 2]: value and, as int32, offset
    start: Tensor
    work: Tensor  # about how long the filters before each take, in entries
    channels_per_block: int
    gathered: int  # pixels that are copied next to each other first; 0: none
    strides: tuple[int, ...]


@dataclass(frozen=True)
class CompiledFilters:
    """The weights that are not zero in machine code, for inputs with the strides of one it was made for."""

    convolution: Convolution
    code: _core.CompiledFilters
    strides: tuple[int, ...]


@dataclass(frozen=True)
class DepthwiseFilters:
    """The same of a convolution whose groups have one channel each: one channel is computed after the other."""

    convolution: Convolution
    entries: Tensor
    start: Tensor
    strides: tuple[int, ...]


@dataclass(frozen=True)
class DenseFilters:
    """All weights of a convolution, for inputs with the strides of one it was packed for."""

    convolution: Convolution
    weights: Tensor
    offsets: Tensor
    strides: tuple[int, ...]


@dataclass(frozen=True)
class LaneFilters:
    """All weights of a convolution to single pixels, for inputs with the strides of one it was packed for.

    The lanes are filters: few images, or small ones, leave none of them empty.
    """

    convolution: Convolution
    weights: Tensor
    offsets: Tensor
    together: int  # filters side by side
    strides: tuple[int, ...]


@dataclass(frozen=True)
class WinogradFilters:
    """All weights of a 3 x 3 convolution with stride 1, or of a 7 x 7 one with stride 2, transformed."""

    convolution: Convolution
    weights: Tensor
    together: int  # filters side by side


Filters = SparseFilters | CompiledFilters | DepthwiseFilters | DenseFilters | LaneFilters | WinogradFilters


def reach(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    rows, columns = (d * (k - 1) - p - s + 1 for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def input_strides(x: Blocks, convolution: Convolution) -> tuple[int, ...]:
    """What the filters' offsets depend on; those of rows, where windows have several."""
    channel, row = x.data.stride()[1:3]
    return channel, row if convolution.kernel[0] > 1 else 0


def best_way(convolution: Convolution, out: Blocks, nonzeros: int) -> tuple[type[Filters], float]:
    """The filters that take the least time, and that time in the dense loop's, by a model that was fitted to
    measurements (docs/performance.md).

    It knows the convolution, the size of the output, the instruction set and the number of weights that are not zero.
    """
    share = nonzeros / math.prod(convolution.weight_shape)
    if convolution.groups == convolution.channels > 1:
        return DepthwiseFilters, share
    ways: list[tuple[type[Filters], float]] = [
        (SparseFilters, _core.sparse_cost(convolution.handle, out.handle, share)),
        (CompiledFilters, _core.compiled_cost(convolution.handle, out.handle, share)),
        (DenseFilters, 1.0),
        (LaneFilters, _core.lane_cost(convolution.handle, out.handle, out.lanes)),
        (WinogradFilters, _core.winograd_cost(convolution.handle, out.handle)),
    ]
    return min(ways, key=lambda way: way[1])


def pack(weight: Tensor, convolution: Convolution, x: Blocks, out: Blocks) -> Filters:
    """The filters that take the least time."""
    nonzeros = int(weight.count_nonzero())
    way, _ = best_way(convolution, out, nonzeros)
    if way is CompiledFilters and _core.compiles(convolution.handle, x.handle):
        return compile_filters(weight, convolution, x)
    if way in (SparseFilters, CompiledFilters):
        return pack_filters(weight, convolution, x, *best_blocks(convolution, x, out, nonzeros))
    if way is WinogradFilters:
        return pack_winograd_filters(weight, convolution, out)
    if way is DepthwiseFilters:
        return pack_depthwise_filters(weight, convolution, x)
    return (pack_lane_filters if way is LaneFilters else pack_dense_filters)(weight, convolution, x)


def best_blocks(convolution: Convolution, x: Blocks, out: Blocks, nonzeros: int) -> tuple[int, int]:
    """channels_per_block and gathered of sparse filters."""
    gathered = _core.best_gathered(convolution.handle, x.handle, nonzeros)
    return _core.best_channels_per_block(convolution.handle, out.handle, nonzeros, gathered), gathered


def pack_filters(
    weight: Tensor, convolution: Convolution, x: Blocks, channels_per_block: int | None = None, gathered: int = 0
) -> SparseFilters:
    """The weights that are not zero, for inputs with the strides of x.

    Matters of speed alone: channels_per_block, of the input (None: all are one block), and gathered, for windows of one
    pixel.
    """
    weight = _checked(weight, convolution)
    if gathered and (convolution.kernel != (1, 1) or convolution.groups > 1):
        raise ValueError(f"pixels are gathered for 1 x 1 windows and one group, not {convolution}")
    threads = _threads(weight)
    channels_per_block = channels_per_block or convolution.channels
    blocks = -(-convolution.channels // channels_per_block)
    start = torch.empty(blocks * convolution.filters + 1, dtype=torch.int64, device="cpu")
    known = address("start", start), address("weight", weight)
    _core.count_filters(*known, convolution.handle, channels_per_block, threads)
    entries = _floats(int(start[-1]), 2)
    blocks_of = channels_per_block, gathered
    _core.pack_filters(address("entries", entries), *known, convolution.handle, x.handle, *blocks_of, threads)
    work = torch.zeros(convolution.filters + 1, dtype=torch.int64, device="cpu")
    counts = start.diff().view(blocks, convolution.filters) + FILTER_WORK
    torch.cumsum(counts.sum(0), 0, out=work[1:])
    return SparseFilters(convolution, entries, start, work, *blocks_of, input_strides(x, convolution))


def compile_filters(weight: Tensor, convolution: Convolution, x: Blocks) -> CompiledFilters:
    """The weights that are not zero, for inputs with the strides of x; ValueError where the instruction set in use, or
    the system, has no place for machine code."""
    weight = _checked(weight, convolution)
    if not _core.compiles(convolution.handle, x.handle):
        raise ValueError(
            f"filters are compiled for avx512, not {_core.instruction_set()}, where the system has executable memory, "
            f"and for inputs that lie less than 2 GiB apart, not as those of {convolution} in {tuple(x.data.shape)}"
        )
    code = _core.CompiledFilters(address("weight", weight), convolution.handle, x.handle, _threads(weight))
    return CompiledFilters(convolution, code, input_strides(x, convolution))


def pack_depthwise_filters(weight: Tensor, convolution: Convolution, x: Blocks) -> DepthwiseFilters:
    """The weights that are not zero where each group has one channel, for inputs with the strides of x; ValueError for
    other groups."""
    if convolution.groups != convolution.channels:
        raise ValueError(f"each group must have one channel, not {convolution.channels // convolution.groups}")
    sparse = pack_filters(weight, convolution, x)
    return DepthwiseFilters(convolution, sparse.entries, sparse.start, sparse.strides)


def pack_dense_filters(weight: Tensor, convolution: Convolution, x: Blocks) -> DenseFilters:
    """All weights, for inputs with the strides of x."""
    weight = _checked(weight, convolution)
    packed = _floats(_core.dense_filters_size(convolution.handle))
    offsets = torch.empty(weight[0].numel(), dtype=torch.int32, device="cpu")
    where = address("packed", packed), address("offsets", offsets), address("weight", weight)
    _core.pack_dense_filters(*where, convolution.handle, x.handle, _threads(weight))
    return DenseFilters(convolution, packed, offsets, input_strides(x, convolution))


def pack_lane_filters(weight: Tensor, convolution: Convolution, x: Blocks) -> LaneFilters:
    """All weights, for inputs with the strides of x and outputs of one pixel; ValueError for several groups."""
    weight = _checked(weight, convolution)
    if convolution.groups > 1:
        raise ValueError(f"filters lie in the lanes where there is one group, not {convolution.groups}")
    together, size = _core.lane_together(), weight[0].numel()
    packed = _floats(-(-convolution.filters // together) * together * size)
    offsets = torch.empty(size, dtype=torch.int32, device="cpu")
    where = address("packed", packed), address("offsets", offsets), address("weight", weight)
    _core.pack_lane_filters(*where, convolution.handle, x.handle, together, _threads(weight))
    return LaneFilters(convolution, packed, offsets, together, input_strides(x, convolution))


def pack_winograd_filters(weight: Tensor, convolution: Convolution, out: Blocks) -> WinogradFilters:
    """All weights, for the windows that Winograd's algorithm takes; ValueError for others."""
    weight = _checked(weight, convolution)
    if not _core.winograd_applies(convolution.handle):
        raise ValueError(
            "Winograd's algorithm is for 3 x 3 windows with stride 1 and 7 x 7 windows with stride 2, and one group, "
            f"not {convolution}"
        )
    together = _core.winograd_together(convolution.handle, out.handle)
    packed = _floats(_core.winograd_filters_size(convolution.handle, together))
    where = address("packed", packed), address("weight", weight)
    _core.pack_winograd_filters(*where, convolution.handle, together, _threads(weight))
    return WinogradFilters(convolution, packed, together)


def _checked(weight: Tensor, convolution: Convolution) -> Tensor:
    """Contiguous, and no lazy view."""
    check_floats("weight", weight, convolution.weight_shape)
    return resolved("weight", weight).contiguous()


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _threads(weight: Tensor) -> int:
    """As many as are worth waking up."""
    return torch.get_num_threads() if weight.numel() > 2**16 else 1
