"""A network on the engine: its plan, filters packed from the model's weights, and memory for activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import batchnorms, check_batch
from lpk.networks.mixing import mixes
from lpk.sparse import arena, kernels, packing
from lpk.sparse.blocks import IMAGES, Blocks, stored_shape
from lpk.sparse.calls import pair
from lpk.sparse.dead import live_windows, without_dead
from lpk.sparse.fold import affine, fold
from lpk.sparse.kernels import Operation
from lpk.sparse.packing import Filters
from lpk.sparse.patches import cut, lanes_of
from lpk.sparse.plan import BATCHES, NotSupported, trace
from lpk.sparse.steps import Affine, Convolve, Flatten, Foreign, Plan, Pool, Relayout, Shape, Step, Value

POOLS: dict[str, Callable[..., Operation]] = {
    "max": kernels.prepare_max_pool,
    "average": kernels.prepare_average_pool,
    "global average": kernels.prepare_global_average_pool,
}

# Images go through the network in groups whose activations fit into this many bytes of cache, one block of images for
# each thread at least.
CACHE = 16 << 20

RECENT = 8  # shapes of activations whose memory a layout keeps
SIZES = 1000  # of batches, for which a network remembers that its plan holds


class Network:
    """Computes what a model in evaluation mode computes, for float32 samples of one shape, on a CPU.

    The values stay the model's: they are read at the first call, and again after `changed` was called.

    Args:
        model: float32, on the CPU.
        shape: of one sample, (channels, height, width) or (features,).
        dead: whether weights that change nothing are computed with. Without them, `measure` is not possible: the
            statistics of channels that nobody reads would be others.
        read: the values of a layer's weight; by default they are in the weight.
        planned: called with each plan, before it is used: a batch of a size that the plan does not hold for needs
            another one.

    Raises NotSupported where the model can't be traced, and when a batch is computed that it can't be planned for.
    """

    name = "sparse"

    def __init__(
        self,
        model: nn.Module,
        shape: Shape,
        *,
        dead: bool = True,
        read: Callable[[Tensor], Tensor] = Tensor.detach,
        planned: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self.model = model
        self.shape = shape
        self.dead = dead
        self.read = read
        self.planned = planned
        self.plan: Plan = trace(model, shape, changing=dead)
        planned(self.plan)
        self._batches: tuple[int, ...] = BATCHES
        self._sizes: set[int] = set()  # of batches that the plan holds for
        self._layouts: dict[int, _Layout] = {}  # by the lanes of an image
        self.filters: _Packed = {}
        self.names: dict[_BatchNorm, str] = {layer: path for path, layer in batchnorms(model)}

    @property
    def whole(self) -> bool:
        """Whether no step runs in PyTorch, and there is a convolution."""
        layers = [step.layer for step in self.plan.steps if isinstance(step, Convolve)]
        return not self.plan.in_pytorch and any(isinstance(layer, nn.Conv2d) for layer in layers)

    @cached_property
    def mixes(self) -> bool:
        """Whether the output for a sample may depend on others of its batch."""
        return any(step.mixes for step in self.plan.foreign) or any(map(_mixes, self.plan.foreign))

    def changed(self, *, weights: bool = True) -> None:
        """To be called after the model's values changed: they are read again. weights: False: only BatchNorm's did."""
        if weights or not self.dead:
            self.filters.clear()
        self._forget_calls()

    def forget(self) -> None:
        """Frees what was packed and the memory for activations, at once: a network is part of cycles."""
        self.changed()
        for layout in self._layouts.values():
            layout.runs.clear()
            layout.memory.clear()

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Any:
        """The model's output for inputs [B, *shape]."""
        self._plan_for(len(inputs))
        parts = [self._layout(lanes_of(len(x))).run(len(x)).forward(x) for x in self._parts(inputs.float())]
        if not parts:
            parts = [[torch.empty(0, *value.shape, dtype=torch.float32, device="cpu") for value in self.plan.outputs]]
        outputs = parts[0] if len(parts) == 1 else [torch.cat(of_parts) for of_parts in zip(*parts, strict=True)]
        return outputs[0] if self.plan.ending is None else self.plan.ending.forward(*outputs)

    @torch.no_grad()
    def measure(self, inputs: Tensor) -> dict[_BatchNorm, int]:
        """Writes the statistics of one batch [B, *shape] into the model's BatchNorm layers, as training with momentum 1
        does: the mean and the unbiased variance of what each of them reads, the others before it normalising by theirs.

        Returns how often each layer is called. Where that is more than once, its statistics are the calls' mean.

        Raises NotSupported where one of them runs in PyTorch, ValueError where one reads one value for each channel.
        """
        assert self.dead
        self._plan_for(len(inputs))
        layers = (module for part in self.plan.in_pytorch for module in part.modules())
        if any(isinstance(layer, _BatchNorm) and layer.running_mean is not None for layer in layers):
            raise NotSupported("a BatchNorm layer runs in PyTorch, where the engine does not measure its statistics")
        self._forget_calls()
        return self._layout(1).run(len(inputs)).measure(inputs.float())

    def _plan_for(self, size: int) -> None:
        """Makes a plan that holds for batches of this size, too."""
        if size in self._sizes or size == 0:
            return
        if not self.plan.holds(size):
            self._batches = (*self._batches, size)
            self.plan = trace(self.model, self.shape, self._batches, changing=self.dead)
            self.planned(self.plan)
            self.forget()
            self._layouts.clear()
            vars(self).pop("mixes", None)
        if len(self._sizes) == SIZES:
            self._sizes.clear()
        self._sizes.add(size)

    def _layout(self, lanes: int) -> _Layout:
        if lanes not in self._layouts:
            plan = self.plan if lanes == 1 else cut(self.plan, lanes)
            self._layouts[lanes] = _Layout(plan, self)
        return self._layouts[lanes]

    def _forget_calls(self) -> None:
        """They hold what was derived from the model's values."""
        for layout in self._layouts.values():
            for run in layout.runs.values():
                run.calls.clear()

    def _parts(self, inputs: Tensor) -> Iterator[Tensor]:
        """Groups of whole blocks, and what is left over; all at once where samples may depend on each other."""
        if 0 < len(inputs) <= IMAGES or (len(inputs) and self.mixes):
            yield inputs
            return
        group = _group(self.plan, torch.get_num_threads())
        while len(inputs):
            size = min(group, len(inputs) // IMAGES) * IMAGES or len(inputs)
            yield inputs[:size]
            inputs = inputs[size:]


def _mixes(step: Foreign) -> bool:
    """Whether what PyTorch computes for a sample may depend on others."""
    inputs = [torch.zeros(1, *value.shape, dtype=torch.float32, device="cpu") for value in step.inputs]
    return mixes(step.part.forward, step.part, *inputs)


# Filters by the position of their layer among the plan's, and by the strides of the input they were packed for: layouts
# share those of the same strides, as a linear layer's are.
_Packed = dict[tuple[int, tuple[int, ...]], Filters]
_Shapes = tuple[tuple[int, ...], ...]


class _Layout:
    """A plan, and its runs, by the number of images; those of buffers of the same shapes share their memory."""

    def __init__(self, plan: Plan, network: Network) -> None:
        self.plan = plan
        self.network = network
        self.layers = {step: i for i, step in enumerate(s for s in plan.steps if isinstance(s, Convolve))}
        self.convolutions = {step: _convolution(step.layer) for step in self.layers}
        self.runs: dict[int, _Run] = {}
        self.memory: dict[_Shapes, Tensor] = {}  # by the shapes of the buffers in it; what was used last is last

    def run(self, batch: int) -> _Run:
        if batch not in self.runs:
            self.runs[batch] = _Run(self, batch)
        run = self.runs[batch]
        self.memory[run.shapes] = self.memory.pop(run.shapes)
        if len(self.memory) > RECENT:
            self._forget(next(iter(self.memory)))
        return run

    def _forget(self, shapes: _Shapes) -> None:
        del self.memory[shapes]
        for batch in [batch for batch, run in self.runs.items() if run.shapes == shapes]:
            self.runs.pop(batch).calls.clear()  # they refer to the run


def _convolution(layer: nn.Conv2d | nn.Linear) -> packing.Convolution:
    """A linear layer is a convolution of one pixel."""
    if isinstance(layer, nn.Linear):
        return packing.Convolution(layer.out_features, layer.in_features, (1, 1))
    return packing.Convolution(
        layer.out_channels,
        layer.in_channels,
        kernel=pair(layer.kernel_size),
        stride=pair(layer.stride),
        padding=pair(layer.padding),
        dilation=pair(layer.dilation),
        groups=layer.groups,
    )


class _Run:
    """The plan for one number of images: a buffer for each value, shared by values that are not alive together, and
    the calls that compute the output."""

    def __init__(self, layout: _Layout, batch: int) -> None:
        self.layout, self.plan, self.batch = layout, layout.plan, batch
        self.shapes, self.buffers = _buffers(layout, batch)
        self.calls: list[Callable[[], None]] = []

    def forward(self, inputs: Tensor) -> list[Tensor]:
        self._pack_input(inputs)
        if not self.calls:
            self._pack_live_filters()
            self.calls = list(_joined(part for step in self.plan.steps for part in self._parts(step)))
        for call in self.calls:
            call()
        return list(map(self._unpacked, self.plan.outputs))

    def measure(self, inputs: Tensor) -> dict[_BatchNorm, int]:
        calls: dict[_BatchNorm, int] = {}
        self._pack_input(inputs)
        for step in self.plan.steps:
            if isinstance(step, Convolve) and step.batchnorm is not None:
                x, out = self.buffers[step.inputs[0]], self.buffers[step.out]
                bias = None if step.layer.bias is None else step.layer.bias.detach()
                kernels.convolution(self._filters(step), x, out, bias=bias)
                self._normalise(step, out, calls)
            elif isinstance(step, Affine) and step.batchnorm is not None:
                self._normalise(step, self.buffers[step.inputs[0]], calls)
            else:
                for call in _joined(self._parts(step)):
                    call()
        return calls

    def _pack_input(self, inputs: Tensor) -> None:
        out = self.buffers[self.plan.input]
        kernels.pack_input(inputs.reshape(len(inputs), *self.plan.input.image), out)

    def _unpacked(self, value: Value) -> Tensor:
        return kernels.unpack_output(self.buffers[value]).view(self.batch, *value.shape)

    def _pack_live_filters(self) -> None:
        network = self.layout.network
        if not network.dead and any(self._key(step) not in network.filters for step in self.layout.layers):
            for step, windows in live_windows(self.plan, network.read).items():
                self._filters(step, windows)

    def _filters(self, step: Convolve, windows: Tensor | None = None) -> Filters:
        """A layer's filters, packed if they aren't yet; windows: those that are alive."""
        network, key = self.layout.network, self._key(step)
        filters = network.filters
        if key not in filters:
            weight = network.read(step.layer.weight)
            weight = weight if windows is None else without_dead(weight, windows)
            convolution = self.layout.convolutions[step]
            x, out = self.buffers[step.inputs[0]], self.buffers[step.out]
            filters[key] = packing.pack(weight.view(convolution.weight_shape), convolution, x, out)
        return filters[key]

    def _key(self, step: Convolve) -> tuple[int, tuple[int, ...]]:
        return self.layout.layers[step], packing.input_strides(self.buffers[step.inputs[0]])

    def _normalise(self, step: Convolve | Affine, x: Blocks, calls: dict[_BatchNorm, int]) -> None:
        """BatchNorm by the statistics of x, which its layer is given: the mean of all calls so far."""
        batchnorm = step.batchnorm
        assert batchnorm is not None and batchnorm.running_mean is not None and batchnorm.running_var is not None
        count = x.shape[0] * x.shape[2] * x.shape[3]
        check_batch(self.layout.network.names.get(batchnorm) or "BatchNorm", self.batch, count)
        mean, variance = kernels.channel_statistics(x)
        calls[batchnorm] = calls.get(batchnorm, 0) + 1
        for running, found in ((batchnorm.running_mean, mean), (batchnorm.running_var, variance)):
            running.copy_(found if calls[batchnorm] == 1 else running.to(found).lerp(found, 1 / calls[batchnorm]))
        scale, shift = affine(batchnorm, mean, variance * ((count - 1) / count))
        kernels.scale_shift(x, self.buffers[step.out], scale=scale, shift=shift, **self._ending(step))

    def _ending(self, step: Convolve | Affine) -> dict[str, Any]:
        residual = None if step.residual is None else self.buffers[step.residual]
        return {"residual": residual, "activation": step.activation}

    def _parts(self, step: Step) -> Iterator[Operation | Callable[[], None]]:
        """What computes a step, and completes the patches of its output."""
        x, out = self.buffers[step.inputs[0]] if step.inputs else None, self.buffers[step.out]
        if isinstance(step, Foreign):
            yield partial(self._foreign, step)
        elif isinstance(step, Relayout):
            yield partial(self._relayout, step)
        else:
            assert x is not None
            yield self._operation(step, x, out)
            if out.patches != (1, 1) and out.border > 0:
                yield kernels.prepare_exchange_borders(out)

    def _operation(self, step: Step, x: Blocks, out: Blocks) -> Operation:
        if isinstance(step, Convolve):
            scale, bias = fold(step)
            filters = self._filters(step)
            return kernels.prepare_convolution(filters, x, out, scale=scale, bias=bias, **self._ending(step))
        if isinstance(step, Affine):
            scale, shift = fold(step)
            return kernels.prepare_scale_shift(x, out, scale=scale, shift=shift, **self._ending(step))
        if isinstance(step, Pool):
            return POOLS[step.kind](x, out, **step.options)
        assert isinstance(step, Flatten)
        flat = Blocks(out.data.view(x.data.shape[0], *x.shape[1:], IMAGES), self.batch, 0)
        return kernels.prepare_scale_shift(x, flat)

    def _relayout(self, step: Relayout) -> None:
        kernels.pack_input(kernels.unpack_output(self.buffers[step.inputs[0]]), self.buffers[step.out])

    def _foreign(self, step: Foreign) -> None:
        tensors = map(self._unpacked, step.inputs)
        out, wanted = self.buffers[step.out], (self.batch, *step.out.shape)
        result = step.part.forward(*tensors)
        if result.shape != wanted or result.dtype != torch.float32:
            raise NotSupported(
                f"what PyTorch computes is {result.dtype} {list(result.shape)} for {self.batch} samples; the engine "
                f"needs float32 {list(wanted)}, as for {BATCHES[0]}"
            )
        kernels.pack_input(result.reshape(self.batch, *step.out.image), out)


def _joined(parts: Iterable[Operation | Callable[[], None]]) -> Iterator[Callable[[], None]]:
    """Operations that follow each other as one call, which lets a thread take its images through all of them."""
    operations: list[Operation] = []
    for part in parts:
        if isinstance(part, Operation):
            operations.append(part)
        else:
            yield partial(kernels.run, operations)
            yield part
            operations = []
    yield partial(kernels.run, operations)


def _buffers(layout: _Layout, batch: int) -> tuple[_Shapes, dict[Value, Blocks]]:
    """A buffer for each value, all in one arena, and their shapes."""
    slots = _slots(layout.plan)
    kinds = {slot: value for value, slot in slots.items()}
    shapes = tuple(
        stored_shape(batch, value.image[0], value.border, value.patches, value.patch or value.image[1:])
        for value in kinds.values()
    )
    sizes = [math.prod(shape) for shape in shapes]
    if shapes not in layout.memory:
        layout.memory[shapes] = arena.zeros(sum(sizes))
    blocks = {
        slot: Blocks(part.view(shape), batch, value.border, value.patches, value.image[1:])
        for (slot, value), shape, part in zip(kinds.items(), shapes, layout.memory[shapes].split(sizes), strict=True)
    }
    return shapes, {value: blocks[slot] for value, slot in slots.items()}


def _slots(plan: Plan) -> dict[Value, int]:
    """The number of each value's buffer. One whose last reader has run is used again by a later value of the same kind:
    the border stays zero, since nothing writes there."""
    last = {value: i for i, step in enumerate(plan.steps) for value in step.inputs}
    free: dict[Hashable, list[int]] = {}
    slots: dict[Value, int] = {}
    count = itertools.count()

    def add(value: Value) -> None:
        slots[value] = free[kind].pop() if free.get(kind := _kind(value)) else next(count)

    add(plan.input)
    alive = {plan.input}
    for i, step in enumerate(plan.steps):
        add(step.out)
        alive.add(step.out)
        for value in {*step.inputs, step.out} - set(plan.outputs):
            if last.get(value, i) == i and value in alive:
                free.setdefault(_kind(value), []).append(slots[value])
                alive.remove(value)
    return slots


def _kind(value: Value) -> Hashable:
    """What two values must have in common to lie in the same memory, one after the other."""
    return value.image, value.border, value.patches, value.patch


def _group(plan: Plan, threads: int) -> int:
    """How many blocks of images go through the network together: their two largest activations fit into CACHE."""
    values = [plan.input, *(step.out for step in plan.steps)]
    sizes = sorted(c * (h + 2 * v.border) * (w + 2 * v.border) for v in values for c, h, w in [v.image])
    block = 4 * IMAGES * sum(sizes[-2:])
    return threads * max(1, min(16, CACHE // (block * threads)))
