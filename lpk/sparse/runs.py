"""A plan on the engine: for each number of images, buffers for its values and the calls that compute the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lpk.sparse import kernels
from lpk.sparse.blocks import IMAGES, Blocks
from lpk.sparse.buffers import Shapes, buffers_of
from lpk.sparse.errors import NotSupported
from lpk.sparse.filters import PlanFilters, Weights
from lpk.sparse.fold import fold
from lpk.sparse.kernels import Operation
from lpk.sparse.plan import BATCHES
from lpk.sparse.steps import Affine, Convolve, Flatten, Foreign, Plan, Pool, Relayout, Step, Value

POOLS: dict[str, Callable[..., Operation]] = {
    "max": kernels.prepare_max_pool,
    "average": kernels.prepare_average_pool,
    "global average": kernels.prepare_global_average_pool,
}

RECENT = 8  # shapes of activations whose memory a layout keeps


class Layout:
    """A plan, and its runs, by the number of images; those of buffers of the same shapes share their memory."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self.filters = PlanFilters(plan, weights)
        self.runs: dict[int, Run] = {}
        self.memory: dict[Shapes, Tensor] = {}  # by the shapes of the buffers in it; what was used last is last

    def run(self, batch: int) -> Run:
        if batch not in self.runs:
            self.runs[batch] = Run(self, batch)
        run = self.runs[batch]
        self.memory[run.shapes] = self.memory.pop(run.shapes)
        if len(self.memory) > RECENT:
            self._forget(next(iter(self.memory)))
        return run

    def _forget(self, shapes: Shapes) -> None:
        del self.memory[shapes]
        for batch in [batch for batch, run in self.runs.items() if run.shapes == shapes]:
            self.runs.pop(batch).calls.clear()  # they refer to the run


class Run:
    """The plan for one number of images: a buffer for each value, shared by values that are not alive together, and
    the calls that compute the output."""

    def __init__(self, layout: Layout, batch: int) -> None:
        self.plan, self.filters, self.batch = layout.plan, layout.filters, batch
        self.shapes, self.buffers = buffers_of(layout.plan, batch, layout.memory)
        self.calls: list[Callable[[], None]] = []

    def forward(self, inputs: Tensor) -> list[Tensor]:
        self.pack_input(inputs)
        if not self.calls:
            self.filters.pack_live(self.buffers)
            self.calls = list(joined(part for step in self.plan.steps for part in self.parts(step)))
        for call in self.calls:
            call()
        return list(map(self._unpacked, self.plan.outputs))

    def pack_input(self, inputs: Tensor) -> None:
        out = self.buffers[self.plan.input]
        kernels.pack_input(inputs.reshape(len(inputs), *self.plan.input.image), out)

    def _unpacked(self, value: Value) -> Tensor:
        return kernels.unpack_output(self.buffers[value]).view(self.batch, *value.shape)

    def ending(self, step: Convolve | Affine) -> dict[str, Any]:
        residual = None if step.residual is None else self.buffers[step.residual]
        return {"residual": residual, "activation": step.activation}

    def parts(self, step: Step) -> Iterator[Operation | Callable[[], None]]:
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
            filters = self.filters.of(step, self.buffers)
            return kernels.prepare_convolution(filters, x, out, scale=scale, bias=bias, **self.ending(step))
        if isinstance(step, Affine):
            scale, shift = fold(step)
            return kernels.prepare_scale_shift(x, out, scale=scale, shift=shift, **self.ending(step))
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


def joined(parts: Iterable[Operation | Callable[[], None]]) -> Iterator[Callable[[], None]]:
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
