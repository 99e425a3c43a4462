"""A network on the engine, for samples of one shape: the plan that holds for a batch, and where it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import batchnorms
from lpk.networks.mixing import mixes
from lpk.sparse.blocks import IMAGES
from lpk.sparse.choice import Estimate, estimate
from lpk.sparse.errors import NotSupported
from lpk.sparse.filters import Weights
from lpk.sparse.inputs import Inputs
from lpk.sparse.measure import measure
from lpk.sparse.patches import cut
from lpk.sparse.plan import BATCHES, trace
from lpk.sparse.profile import Profile, Work, profile_run, work
from lpk.sparse.results import BATCH
from lpk.sparse.runs import Layout, Run
from lpk.sparse.steps import Foreign, Plan, Shape

# Images go through the network in groups whose activations fit into this many bytes of cache, one block of images for
# each thread at least.
CACHE = 16 << 20

SIZES = 1000  # of batches, for which a network remembers that its plan holds


class Network:
    """Computes what a model in evaluation mode computes, for inputs of one kind, on a CPU.

    The values stay the model's: they are read at the first call, and again after `changed` was called.

    Args:
        model: float32, on the CPU.
        inputs: what it is called with; a shape stands for float32 samples of it.
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
        inputs: Inputs | Shape,
        *,
        dead: bool = True,
        read: Callable[[Tensor], Tensor] = Tensor.detach,
        planned: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self.model = model
        self.inputs = inputs if isinstance(inputs, Inputs) else Inputs.of_shape(inputs)
        self.dead = dead
        self.planned = planned
        self.plan: Plan = trace(model, self.inputs, changing=dead)
        planned(self.plan)
        self._batches: tuple[int, ...] = BATCHES
        self._sizes: set[int] = set()  # of batches that the plan holds for
        self._layouts: dict[int | None, Layout] = {}  # by the samples that the cuts are for
        self._estimates: dict[int, Estimate] = {}  # by the number of samples
        self.weights = Weights(read, dead)
        self.names: dict[_BatchNorm, str] = {layer: path for path, layer in batchnorms(model)}

    @property
    def whole(self) -> bool:
        """Whether no step runs in PyTorch, and there is a convolution."""
        return not self.plan.in_pytorch and any(step.layer.weight.dim() == 4 for step in self.plan.layers)

    @cached_property
    def _of_tokens(self) -> bool:
        return self.plan.of_tokens

    @cached_property
    def mixes(self) -> bool:
        """Whether the output for a sample may depend on others of its batch, or on how many there are."""
        return any(step.counts for step in self.plan.foreign) or any(map(_mixes, self.plan.foreign))

    def estimate(self, size: int) -> Estimate:
        """What a batch takes on the engine and in PyTorch; that of 16 stands for all larger ones."""
        self._plan_for(size)
        samples = max(1, min(size, IMAGES))
        if samples not in self._estimates:
            self._estimates[samples] = estimate(self._run(samples))
        return self._estimates[samples]

    def profile(self, inputs: Sequence[Tensor], how: str, repetitions: int) -> Profile:
        """Of a batch that is not cut into groups."""
        size = self.size_of(inputs)
        self._plan_for(size)
        return profile_run(self._run(size), inputs, how, repetitions)

    def how(self) -> str:
        """Where it runs, in words."""
        plan, layers = self.plan, len(self.plan.layers)
        parts = len(plan.in_pytorch)
        text = f"{layers} layers on the engine, {parts or 'no'} part{'' if parts == 1 else 's'} in PyTorch"
        slower = [samples for samples, found in self._estimates.items() if not found.engine_pays]
        if slower:
            text += f"; with {', '.join(map(str, sorted(slower)))} samples all of it in PyTorch, which takes less time"
        size, steps = self.work()
        if steps:
            ways = Counter(step.way for step in steps if step.density is not None)
            products, dense = sum(step.products for step in steps), sum(step.dense for step in steps)
            text += f"; with {size} samples: " + ", ".join(f"{count} {way}" for way, count in ways.items())
            text += f"; {products / size / 1e6:.3g} of {dense / size / 1e6:.3g} million multiply-adds a sample"
        return text

    def work(self) -> tuple[int, list[Work]]:
        """What the steps do, and for how many samples: those for which it was last made ready. Before it is, none."""
        runs = [run for layout in list(self._layouts.values()) for run in list(layout.runs.values()) if run.calls]
        return (runs[-1].batch, [work(runs[-1], step) for step in runs[-1].plan.steps]) if runs else (0, [])

    def size_of(self, inputs: Sequence[Tensor]) -> int:
        """The number of samples."""
        return next((len(x) for x, batched in zip(inputs, self.inputs.batched, strict=True) if batched), 1)

    def changed(self, *, weights: bool = True) -> None:
        """To be called after the model's values changed: they are read again. weights: False: only BatchNorm's did."""
        if weights or not self.dead:
            self.weights.forget()
            self._estimates.clear()
        self._forget_calls()

    def forget(self) -> None:
        """Frees what was packed and the memory for activations, at once: a network is part of cycles."""
        self.changed()
        for layout in self._layouts.values():
            layout.runs.clear()
            layout.memory.clear()

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """The model's output for the tensors among its arguments; those that have a batch's dimension have the same."""
        size = self.size_of(inputs)
        self._plan_for(size)
        parts = [self._run(n).forward(part) for n, part in self._parts(size, inputs)]
        if not parts:
            parts = [[_no_samples(slot.result) for slot in self.plan.outputs]]
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
        return measure(self._cut(None).run(len(inputs)), inputs, self.names)

    def _plan_for(self, size: int) -> None:
        """Makes a plan that holds for batches of this size, too."""
        if size in self._sizes or size == 0:
            return
        if not self.plan.holds(size):
            self._batches = (*self._batches, size)
            self.plan = trace(self.model, self.inputs, self._batches, changing=self.dead)
            if not self.plan.holds(size):
                raise NotSupported(f"{type(self.model).__name__} computes something else for {size} samples")
            self.planned(self.plan)
            self.forget()
            self._layouts.clear()
            self._estimates.clear()
            for known in ("mixes", "_of_tokens"):
                vars(self).pop(known, None)
        if len(self._sizes) == SIZES:
            self._sizes.clear()
        self._sizes.add(size)

    def _run(self, size: int) -> Run:
        """For so many samples. Whole blocks are cut alike, however many there are; tokens as one sample's: the channels
        of a block are then few pixels, which stay in a cache."""
        layout = self._cut(1 if self._of_tokens else min(size, IMAGES))
        return layout.run(size, torch.get_num_threads())

    def _cut(self, samples: int | None) -> Layout:
        if samples not in self._layouts:
            self._layouts[samples] = Layout(cut(self.plan, samples), self.weights)
        return self._layouts[samples]

    def _forget_calls(self) -> None:
        """They hold what was derived from the model's values."""
        for layout in self._layouts.values():
            for run in layout.runs.values():
                run.calls.clear()

    def _parts(self, size: int, inputs: Sequence[Tensor]) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """Groups of whole blocks, and what is left over; all at once where samples may depend on each other."""
        if 0 < size <= IMAGES or (size and self.mixes):
            yield size, inputs
            return
        group = _group(self.plan, torch.get_num_threads())
        first = 0
        while first < size:
            count = min(group, (size - first) // IMAGES) * IMAGES or size - first
            batched = zip(inputs, self.inputs.batched, strict=True)
            yield count, [x[first : first + count] if is_batch else x for x, is_batch in batched]
            first += count


def _mixes(step: Foreign) -> bool:
    """Whether what PyTorch computes for a sample may depend on others."""
    given = [slot.result for slot in step.reads]
    if not all(isinstance(x, Tensor) and x.dim() > 0 and len(x) == BATCH for x in given):
        return True
    inputs = [torch.zeros(1, *x.shape[1:], dtype=x.dtype, device="cpu") for x in given]
    return mixes(step.part.forward, step.part, *inputs)


def _no_samples(result: Any) -> Any:
    """A result for BATCH samples, for none."""
    if not isinstance(result, Tensor):
        return result
    return torch.empty(0, *result.shape[1:], dtype=result.dtype, device="cpu")


def _group(plan: Plan, threads: int) -> int:
    """How many blocks of images go through the network together: their two largest activations fit into CACHE."""
    sizes = sorted(c * (h + 2 * v.border) * (w + 2 * v.border) for v in plan.values for c, h, w in [v.image])
    block = 4 * IMAGES * sum(sizes[-2:])
    return threads * max(1, min(16, CACHE // (block * threads))) if block else threads * 16
