"""A plan on the engine: for each number of images, buffers for its values and the calls that compute the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
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
from lpk.sparse.steps import (
    Affine,
    AnyStep,
    Attention,
    Concatenate,
    Convolve,
    Flatten,
    Foreign,
    LayerNorm,
    Multiply,
    Pack,
    Pick,
    Plan,
    Pool,
    Relayout,
    Seen,
    Slot,
    Step,
    Unpack,
)
from lpk.sparse.views import as_images, as_tensor

POOLS: dict[str, Callable[..., Operation]] = {
    "max": kernels.prepare_max_pool,
    "average": kernels.prepare_average_pool,
    "global average": kernels.prepare_global_average_pool,
}

RECENT = 8  # shapes of activations whose memory a layout keeps

Part = Operation | Callable[[], None]


class Layout:
    """A plan, and its runs, by the number of images; those of buffers of the same shapes share their memory."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self.filters = PlanFilters(plan, weights)
        self.runs: dict[tuple[int, int | None], Run] = {}  # also by the number of threads
        self.memory: dict[Shapes, Tensor] = {}  # by the shapes of the buffers in it; what was used last is last

    def run(self, batch: int, threads: int | None = None) -> Run:
        """threads: that shall run it; None: any number, and each step may run by itself."""
        if (batch, threads) not in self.runs:
            self.runs[batch, threads] = Run(self, batch, threads)
        run = self.runs[batch, threads]
        self.memory[run.shapes] = self.memory.pop(run.shapes)
        if len(self.memory) > RECENT:
            self._forget(next(iter(self.memory)))
        return run

    def _forget(self, shapes: Shapes) -> None:
        del self.memory[shapes]
        for key in [key for key, run in self.runs.items() if run.shapes == shapes]:
            self.runs.pop(key).calls.clear()  # they refer to the run


class Run:
    """The plan for one number of images: a buffer for each value, shared by values that are not alive together, and
    the calls that compute the output. Results of PyTorch's are there while a call needs them."""

    def __init__(self, layout: Layout, batch: int, threads: int | None) -> None:
        self.plan, self.filters, self.batch = layout.plan, layout.filters, batch
        self.threads = threads
        self.shapes, self.buffers = buffers_of(layout.plan, batch, threads, layout.memory)
        self.calls: list[Callable[[], None]] = []
        self.slots: dict[Slot, Any] = {}
        # The tensors that the plan returns are made before the engine runs: after it, neither Python's nor PyTorch's
        # code is in a cache, and each of their calls takes tens of microseconds.
        self.unpacks: dict[Unpack, tuple[Tensor, Callable[[], None]]] = {}
        unpacks = [step for step in layout.plan.steps if isinstance(step, Unpack) and step.values]
        self.last_unpacks = [step for step in unpacks if step.slot in layout.plan.outputs]

    def forward(self, inputs: Sequence[Tensor]) -> list[Any]:
        """What lies in the plan's outputs then."""
        if not self.calls:
            self.filters.pack_live(self.buffers)
            parts = (part for parts in self.parts() for part in parts)
            self.calls = list(joined(parts, self.threads))
        self.begin(inputs)
        try:
            for call in self.calls:
                call()
            return [self.slots[slot] for slot in self.plan.outputs]
        finally:
            self.end()

    def begin(self, inputs: Sequence[Tensor]) -> None:
        self.slots = dict(zip(self.plan.inputs, inputs, strict=True))
        self.unpacks = {step: self._prepared(step.seen) for step in self.last_unpacks}

    def end(self) -> None:
        self.slots, self.unpacks = {}, {}

    def parts(self) -> Iterator[Iterator[Part]]:
        """What computes each step, and forgets what no later one reads."""
        last = {slot: i for i, step in enumerate(self.plan.steps) for slot in _slots_read(step)}
        kept = {*self.plan.outputs}
        for i, step in enumerate(self.plan.steps):
            yield self.of_step(step, [slot for slot in _slots_read(step) if last[slot] == i and slot not in kept])

    def of_step(self, step: AnyStep, done: Sequence[Slot] = ()) -> Iterator[Part]:
        """What computes a step, and completes the patches of its output. done: what is to be forgotten then."""
        if isinstance(step, Foreign):
            yield partial(self._foreign, step, done)
        elif isinstance(step, Pack):
            yield partial(self._pack, step, done)
        elif isinstance(step, Unpack):
            shaped = None if step.values else self._shaped(step.seen)
            yield partial(self._unpack, step) if shaped is None else partial(self._put, step.slot, shaped)
        else:
            out = self.buffers[step.out]
            yield from self._operations(step, [self.buffers[value] for value in step.inputs], out)
            if out.patches != (1, 1) and out.border > 0:
                yield kernels.prepare_exchange_borders(out)

    def ending(self, step: Convolve | Affine) -> dict[str, Any]:
        residual = None if step.residual is None else self.buffers[step.residual]
        return {"residual": residual, **_activation(step)}

    def _operations(self, step: Step, inputs: list[Blocks], out: Blocks) -> Iterator[Operation]:
        x = inputs[0]
        if isinstance(step, Convolve):
            scale, bias = fold(step)
            filters = self.filters.of(step, self.buffers)
            yield kernels.prepare_convolution(filters, x, out, scale=scale, bias=bias, **self.ending(step))
        elif isinstance(step, Affine):
            scale, shift = fold(step)
            yield kernels.prepare_scale_shift(x, out, scale=scale, shift=shift, **self.ending(step))
        elif isinstance(step, Multiply):
            yield kernels.prepare_multiply(x, inputs[1], out, **_activation(step))
        elif isinstance(step, LayerNorm):
            yield kernels.prepare_layer_norm(x, out, weight=step.weight, bias=step.bias, eps=step.eps)
        elif isinstance(step, Attention):
            query, key, value = inputs
            yield kernels.prepare_attention(query, key, value, out, step.heads, step.count, step.size, step.scale)
        elif isinstance(step, Pick):
            yield kernels.prepare_pick(x, out, torch.tensor(step.channels, dtype=torch.int64, device="cpu"))
        elif isinstance(step, Concatenate):
            first = 0
            for part in inputs:
                last = first + part.shape[1]
                yield kernels.prepare_scale_shift(part, out.channels(first, last))
                first = last
        elif isinstance(step, Relayout):
            yield kernels.prepare_relayout(x, out, step.stride)
        elif isinstance(step, Pool):
            yield POOLS[step.kind](x, out, **step.options)
        else:
            assert isinstance(step, Flatten)
            flat = replace(out, data=out.data.view(len(out.data), *x.shape[1:], IMAGES), image=None)
            yield kernels.prepare_scale_shift(x, flat)

    def _pack(self, step: Pack, done: Sequence[Slot]) -> None:
        tensor, seen = self.slots[step.slot], step.seen
        wanted = (self.batch * seen.times, *seen.shape)
        if not isinstance(tensor, Tensor) or tensor.shape != wanted or tensor.dtype != torch.float32:
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise NotSupported(
                f"what PyTorch computes is {found} for {self.batch} samples; the engine needs float32 {list(wanted)}, "
                f"as for {BATCHES[0]}"
            )
        kernels.pack_input(as_images(tensor, seen), self.buffers[seen.value])
        self._forget(done)

    def _unpack(self, step: Unpack) -> None:
        self.slots[step.slot], fill = self.unpacks.get(step) or self._prepared(step.seen)
        fill()

    def _put(self, slot: Slot, result: Tensor) -> None:
        self.slots[slot] = result

    def _prepared(self, seen: Seen) -> tuple[Tensor, Callable[[], None]]:
        """What PyTorch sees of a value, and the call that fills it in."""
        stored, fill = kernels.prepare_unpack(self.buffers[seen.value], last=seen.last)
        return as_tensor(stored, seen), fill

    def _shaped(self, seen: Seen) -> Tensor:
        """A tensor of which the shape counts: it takes no memory."""
        return torch.zeros((), dtype=torch.float32, device="cpu").expand(self.batch * seen.times, *seen.shape)

    def _foreign(self, step: Foreign, done: Sequence[Slot]) -> None:
        results = step.part.forward(*(self.slots[slot] for slot in step.reads))
        self._forget(done)
        self.slots.update(zip(step.writes, results, strict=True))

    def _forget(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            del self.slots[slot]


def _activation(step: Convolve | Affine | Multiply) -> dict[str, Any]:
    return {"activation": step.activation.name, "slope": step.activation.slope}


def _slots_read(step: AnyStep) -> list[Slot]:
    return step.reads if isinstance(step, Foreign) else [step.slot] if isinstance(step, Pack) else []


def joined(parts: Iterable[Part], threads: int | None = None) -> Iterator[Callable[[], None]]:
    """Operations that follow each other as one call, which lets a thread take its images through all of them."""
    operations: list[Operation] = []
    for part in parts:
        if isinstance(part, Operation):
            operations.append(part)
        else:
            if operations:
                yield partial(kernels.run, operations, threads)
            yield part
            operations = []
    if operations:
        yield partial(kernels.run, operations, threads)
