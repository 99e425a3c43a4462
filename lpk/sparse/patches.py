"""Images are cut into patches: so that all 16 lanes of the engine have work, and a block's activations are small."""

from __future__ import annotations

import math
from dataclasses import replace

from lpk.sparse.blocks import Pair, block_count
from lpk.sparse.narrow import narrowed
from lpk.sparse.packing import reach
from lpk.sparse.steps import (
    Affine,
    AnyStep,
    Attention,
    Concatenate,
    Convolve,
    Flatten,
    Foreign,
    Layer,
    Multiply,
    Pack,
    Pick,
    Plan,
    Pool,
    Relayout,
    Step,
    Unpack,
    Value,
)

Cut = tuple[Pair, Pair]  # patches, and the size of one

COUNTS = (16, 8, 4, 2, 1)  # of patches

# Measured, on networks at 224 and 32 pixels:
BORDER = 0.1  # what a pixel of a patch's border takes, in pixels
BLOCK = 2  # what a block takes besides, for the weights are read once for each
SMALL = 1.1  # so many times the least time are well spent on smaller blocks, which stay in a nearer cache
SAME = 1.08  # or on values that need not be cut anew


def cut(plan: Plan, batch: int | None) -> Plan:
    """The same plan with every value's patches, as suits so many samples; None: without any. But attention always takes
    one sample's.

    An operation of stride s makes from a patch of s·h x s·w pixels one of h x w. Where that does not come out even, and
    where an operation needs whole images, a Relayout comes first.
    """
    cutter = _Cutter(batch)
    for step in plan.steps:
        cutter.add(step)
    return replace(plan, steps=narrowed(cutter.steps))


class _Cutter:
    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.values: dict[Value, Value] = {}
        self.steps: list[AnyStep] = []
        self.copies: dict[tuple[Value, Cut], Value] = {}  # each value in every cut it is needed in
        self.nonnegative: set[Value] = set()

    def add(self, step: AnyStep) -> None:
        if isinstance(step, Pack | Unpack):
            if isinstance(step, Pack):
                self._new(step.out, self._best(step.out))
            values = isinstance(step, Pack) or step.values  # else it is read for its shape
            seen = step.seen.of(self.values[step.seen.value]) if values else step.seen
            self.steps.append(replace(step, seen=seen))
        elif isinstance(step, Foreign):
            self.steps.append(step)
        else:
            self._add(step, *self._inputs(step))

    def _add(self, step: Step, x: Value, *others: Value) -> None:
        out = self.values[step.out]
        made = replace(step, inputs=[x, *others], out=out)
        if isinstance(made, Convolve) and x.image[1:] == out.image[1:] and _skips(made.layer):
            made.layer = replace(made.layer, stride=(1, 1))
        if isinstance(made, Convolve | Affine):
            made.residual = others[0] if others else None
        if isinstance(made, Convolve | Affine | Multiply):
            nonnegative = made.activation.is_nonnegative
        else:
            moves = isinstance(made, Pool | Concatenate | Pick | Flatten | Relayout)
            nonnegative = moves and all(value in self.nonnegative for value in made.inputs)
        if nonnegative:
            self.nonnegative.add(out)
        self.steps.append(made)

    def _inputs(self, step: Step) -> list[Value]:
        """A step's inputs, cut as it needs them; its output is cut, too."""
        first, *others = step.inputs
        if isinstance(step, Attention):
            self._new(step.out, _of_one(step.out))
            return [self._as(value, _of_one(value)) for value in step.inputs]
        if self.batch is None:
            self._new(step.out, _whole(step.out))
            return [self._as(value, _whole(value)) for value in step.inputs]
        if isinstance(step, Convolve) and not (step.layer.is_pointwise and first.pixels == 1):
            layer = step.layer
            x = self._windows(step, layer.kernel, layer.stride, layer.padding, layer.dilation)
            x.border = max(x.border, *layer.behind)
        elif isinstance(step, Pool) and step.kind == "global average":
            x = self.values[first]
            self._new(step.out, _whole(step.out))
        elif isinstance(step, Pool) and self._local(step):
            options = step.options
            window = (options["kernel"], options["stride"], options["padding"], options.get("dilation", (1, 1)))
            negative = not _stays_inside(step) and self.values[first] not in self.nonnegative
            x = self._windows(replace(step, inputs=[self._surrounded(first)]) if negative else step, *window)
        elif isinstance(step, Convolve | Pool | Flatten):
            x = self._as(first, _whole(first))
            self._new(step.out, _whole(step.out))
        elif isinstance(step, Relayout):
            x = self.values[first]
            self._new(step.out, self._best(step.out))
        else:
            x = self.values[first]
            self._new(step.out, _cut_of(x))
        cut = _cut_of(self.values[step.out])
        return [x, *(self._as(value, _whole(value) if value.pixels == 1 else cut) for value in others)]

    def _best(self, value: Value) -> Cut:
        return _whole(value) if self.batch is None else best_cut(value.image[1], value.image[2], self.batch)

    def _local(self, step: Pool) -> bool:
        """Whether a pooling may read what a patch holds outside the image, where the patch has a border."""
        kernel, stride, padding = (step.options[key] for key in ("kernel", "stride", "padding"))
        has_border = max(*padding, *reach(kernel, stride, padding, step.options.get("dilation", (1, 1)))) > 0
        return _stays_inside(step) or (step.kind == "max" and has_border)

    def _surrounded(self, value: Value) -> Value:
        """A copy with -inf outside the image, for the largest of what may be negative."""
        copy = Value(value.image, outside=-math.inf)
        self._new(copy, _cut_of(self.values[value]))
        self.steps.append(Affine([self.values[value]], self.values[copy], name="surrounded"))
        return copy

    def _windows(self, step: Step, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Value:
        """The input of a step that slides windows over it; its output is cut like it, or both anew."""
        assert self.batch is not None
        source, (_, height, width) = step.inputs[0], step.out.image
        patches, patch = _cut_of(self.values[source])
        high, wide = (n // s for n, s in zip(patch, stride, strict=True))
        larger = [max(n, -(-m // s)) for n, m, s in zip((height, width), source.image[1:], stride, strict=True)]
        best = best_cut(larger[0], larger[1], self.batch)
        same = patches, (high, wide)
        fits = (high * stride[0], wide * stride[1]) == patch
        covers = patches[0] * high >= height and patches[1] * wide >= width
        good = fits and covers and _work(same, self.batch) <= SAME * _work(best, self.batch)
        out = same if good else best
        if not good and isinstance(step, Convolve) and _skips(step.layer):
            self._new(step.out, out)
            return self._every(source, step.layer.stride, step.out, out)
        if out[0] == (1, 1):
            x = self._as(source, _whole(source))
            self._new(step.out, _whole(step.out))
        else:
            x = self._as(source, (out[0], (out[1][0] * stride[0], out[1][1] * stride[1])))
            self._new(step.out, out)
        needed = padding if out[0] == (1, 1) else (*padding, *reach(kernel, stride, padding, dilation))
        x.border = max(x.border, *needed)
        return x

    def _new(self, value: Value, cut: Cut) -> None:
        patches, patch = cut
        border = value.border if patches == (1, 1) else 0
        self.values[value] = self.copies[value, cut] = Value(value.image, border, patches, patch, value.outside)

    def _every(self, value: Value, stride: Pair, like: Value, cut: Cut) -> Value:
        """A copy of some of its pixels, which need not be cut anew then."""
        copy = Value((value.channels, *like.image[1:]), 0, *cut, value.outside)
        self.steps.append(Relayout([self.values[value]], copy, stride))
        if self.values[value] in self.nonnegative:
            self.nonnegative.add(copy)
        return copy

    def _as(self, value: Value, cut: Cut) -> Value:
        """The value in this cut: itself, or a copy."""
        if _cut_of(self.values[value]) == cut:
            return self.values[value]
        if (value, cut) not in self.copies:
            patches, patch = cut
            copy = Value(value.image, value.border if patches == (1, 1) else 0, patches, patch, value.outside)
            self.copies[value, cut] = copy
            self.steps.append(Relayout([self.values[value]], copy))
            if self.values[value] in self.nonnegative:
                self.nonnegative.add(copy)
        return self.copies[value, cut]


def _skips(layer: Layer) -> bool:
    """Whether a layer reads some pixels alone, each for one output."""
    zeros = (0, 0)
    return layer.kernel == (1, 1) and layer.stride != (1, 1) and layer.padding == layer.behind == zeros


def _stays_inside(step: Pool) -> bool:
    """Whether no window reaches beyond its patch or the image."""
    kernel, stride, padding = (step.options[key] for key in ("kernel", "stride", "padding"))
    dilation = step.options.get("dilation", (1, 1))
    if padding != (0, 0) or kernel[0] > stride[0] or kernel[1] > stride[1]:
        return False
    sizes = zip(step.inputs[0].image[1:], step.out.image[1:], kernel, stride, dilation, strict=True)
    return all((m - 1) * s + d * (k - 1) < n for n, m, k, s, d in sizes)


def best_cut(height: int, width: int, batch: int) -> Cut:
    """With which a batch of images takes the least time; of those that take about as long, the one with most patches,
    whose blocks are the smallest."""
    cuts = [cut for count in COUNTS if (cut := _into(height, width, count)) is not None]
    least = min(_work(cut, batch) for cut in cuts)
    return next(cut for cut in cuts if _work(cut, batch) <= SMALL * least)


def finest_cut(height: int, width: int) -> Cut:
    """As many patches as there are lanes, or pixels."""
    return next(cut for count in COUNTS if (cut := _into(height, width, count)) is not None)


def _into(height: int, width: int, count: int) -> Cut | None:
    """So many patches: the smallest, with the shortest border, or the widest."""
    ways = [(rows, count // rows) for rows in COUNTS if count % rows == 0 and rows <= height and count // rows <= width]
    cuts = [((rows, columns), (-(-height // rows), -(-width // columns))) for rows, columns in ways]
    return min(cuts, key=lambda cut: _weight(cut[1]), default=None)


def _work(cut: Cut, batch: int) -> float:
    """About how long a batch takes, in pixels of 16 lanes."""
    patches, patch = cut
    return block_count(batch, patches) * (_weight(patch) + BLOCK)


def _weight(patch: Pair) -> float:
    """Of a pixel in the border there is less to do."""
    high, wide = patch
    return high * wide + BORDER * 2 * (high + wide + 2)


def _cut_of(value: Value) -> Cut:
    assert value.patch is not None
    return value.patches, value.patch


def _of_one(value: Value) -> Cut:
    """With which each block holds one sample."""
    return finest_cut(value.image[1], value.image[2])


def _whole(value: Value) -> Cut:
    return (1, 1), (value.image[1], value.image[2])
