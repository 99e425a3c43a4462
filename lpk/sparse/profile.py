"""What runs how, and how long it takes: a call of a sparse network, step by step."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lpk.sparse import kernels
from lpk.sparse.blocks import Blocks
from lpk.sparse.costs import NEAR
from lpk.sparse.kernels import Operation
from lpk.sparse.packing import (
    CompiledFilters,
    DenseFilters,
    DepthwiseFilters,
    LaneFilters,
    SparseFilters,
    WinogradFilters,
)
from lpk.sparse.runs import Part, Run
from lpk.sparse.steps import AnyStep, Attention, Convolve, Foreign, values_of

WAYS = {
    SparseFilters: "sparse",
    CompiledFilters: "compiled",
    DepthwiseFilters: "depthwise",
    DenseFilters: "dense",
    LaneFilters: "dense, filters in the lanes",
    WinogradFilters: "Winograd",
}


@dataclass(frozen=True)
class Work:
    """What a step does: name, way, density and products as in `Row`.

    dense: the multiply-adds that it would take if no weight were zero.
    """

    name: str
    way: str
    density: float | None = None
    products: int = 0
    dense: int = 0


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        name: of what it computes, in the model; what follows a layer (BatchNorm, additions, activations) is part of it.
        way: how it ran: "sparse", "depthwise", "dense", "Winograd", ...; "PyTorch"; "pack" and "unpack" between them.
        density: of a layer's weights, else None.
        products: multiply-adds, for the weights that are not zero.
        bytes: of the activations that it reads and writes.
        milliseconds: the median of the repetitions.
        share: of the machine's limit: the time that its products or its bytes would take at least, of its own.
    """

    name: str
    way: str
    density: float | None
    products: int
    bytes: int
    milliseconds: float
    share: float | None


@dataclass(frozen=True)
class Profile:
    """The steps of a call. how: in words. str() is a table."""

    how: str
    rows: list[Row]

    @property
    def milliseconds(self) -> float:
        return sum(row.milliseconds for row in self.rows)

    def __str__(self) -> str:
        head = ("step", "way", "density", "M products", "KiB", "ms", "of limit")
        cells = [head, *map(_cells, self.rows), ("in all", "", "", "", "", f"{self.milliseconds:.3f}", "")]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        return "\n".join([self.how, *(_line(row, widths) for row in cells)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*words, *numbers]).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    return (
        short(row.name),
        row.way,
        "" if row.density is None else f"{row.density:.1%}",
        f"{row.products / 1e6:.2f}" if row.products else "",
        f"{row.bytes / 1024:,.0f}" if row.bytes else "",
        f"{row.milliseconds:.3f}",
        "" if row.share is None else f"{row.share:.0%}",
    )


def short(name: str) -> str:
    """A step's name without the folders of the file that it stands in."""
    return re.sub(r"\(.*/", "(", name)


def profile_run(run: Run, inputs: Sequence[Tensor], how: str, repetitions: int) -> Profile:
    """Of the steps of a plan; the model's ending is not among them."""
    run.forward(inputs)
    parts = [(i, part) for i, parts in enumerate(run.parts()) for part in parts]
    times: dict[int, list[float]] = {i: [] for i in range(len(run.plan.steps))}
    for _ in range(repetitions):
        run.begin(inputs)
        taken = dict.fromkeys(times, 0.0)
        for i, some in _timed(parts, run.threads):
            taken[i] += some
        for i, seconds in taken.items():
            times[i].append(seconds)
    run.end()
    limits = Limits.measured()
    return Profile(how, [_row(run, step, statistics.median(times[i]), limits) for i, step in enumerate(run.plan.steps)])


def _timed(parts: Sequence[tuple[int, Part]], threads: int | None) -> Iterator[tuple[int, float]]:
    """Runs what computes each step, as a call does, and says how long it took."""
    for is_operation, some in itertools.groupby(parts, lambda part: isinstance(part[1], Operation)):
        steps, group = zip(*some, strict=True)
        yield from zip(steps, kernels.seconds(group, threads) if is_operation else map(_seconds, group), strict=True)


def work(run: Run, step: AnyStep) -> Work:
    """Of a run whose filters are packed; they are where it was called."""
    if isinstance(step, Foreign):
        return Work(step.name, "PyTorch")
    if not isinstance(step, Convolve):
        products = step.products * run.batch if isinstance(step, Attention) else 0
        return Work(step.name, type(step).__name__.lower(), None, products, products)
    weight = step.layer.weight
    nonzeros, positions = run.filters.weights.nonzeros(weight), step.out.pixels * run.batch
    way = WAYS[type(run.filters.of(step, run.buffers))]
    return Work(step.name, way, nonzeros / weight.numel(), nonzeros * positions, weight.numel() * positions)


def _row(run: Run, step: AnyStep, seconds: float, limits: Limits) -> Row:
    done = work(run, step)
    if isinstance(step, Foreign):
        return Row(done.name, done.way, None, 0, 0, 1e3 * seconds, None)
    moved = sum(_bytes(run.buffers[value]) for value in values_of(step))
    share = limits.share(done.products, moved, seconds)
    return Row(done.name, done.way, done.density, done.products, moved, 1e3 * seconds, share)


def _bytes(blocks: Blocks) -> int:
    """Of the images, without borders and empty lanes."""
    batch, channels, height, width = blocks.shape
    return 4 * batch * channels * height * width


@dataclass(frozen=True)
class Limits:
    """Products and bytes per second that this machine reaches: those of a large matrix product, and of a copy, in
    caches and from memory."""

    products: float
    near: float
    far: float

    @classmethod
    def measured(cls) -> Limits:
        a, b = torch.rand(2, 1024, 1024, dtype=torch.float32, device="cpu").unbind()
        return cls(1024**3 / _fastest(lambda: torch.mm(a, b)), _copied(NEAR // 8), _copied(8 * NEAR))

    def share(self, products: float, moved: float, seconds: float) -> float:
        return max(products / self.products, moved / (self.near if moved <= NEAR else self.far)) / seconds


def _copied(size: int) -> float:
    """Bytes that a copy of this size reads and writes in a second."""
    source = torch.ones(size // 4, dtype=torch.float32, device="cpu")
    to = torch.empty_like(source)
    return 2 * size / _fastest(lambda: to.copy_(source))


def _fastest(call: Callable[[], object]) -> float:
    return min(_seconds(call) for _ in range(5))


def profile_call(call: Callable[[], object], how: str, repetitions: int) -> Profile:
    """Of a network that runs in PyTorch as a whole."""
    call()
    seconds = statistics.median(_seconds(call) for _ in range(repetitions))
    return Profile(how, [Row("the network", "PyTorch", None, 0, 0, 1e3 * seconds, None)])


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
