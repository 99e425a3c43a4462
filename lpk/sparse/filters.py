"""The filters of a network's layers, packed from the model's weights when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lpk.sparse import packing
from lpk.sparse.blocks import Blocks
from lpk.sparse.dead import live_windows, without_dead
from lpk.sparse.packing import Filters
from lpk.sparse.steps import Convolve, Layer, Plan, Value

# The position of a layer among the plan's, and the strides of the input that its filters were packed for: layouts share
# those of the same strides, as a linear layer's are.
Key = tuple[int, tuple[int, ...]]


@dataclass(eq=False)
class Weights:
    """What all layouts of a network read: the values of its layers' weights, and what was packed of them so far.

    dead: whether weights that change nothing are packed.
    """

    read: Callable[[Tensor], Tensor]
    dead: bool
    packed: dict[Key, Filters] = field(default_factory=dict)
    counts: dict[Tensor, int] = field(default_factory=dict)  # of weights that are not zero

    def nonzeros(self, weight: Tensor) -> int:
        """How many of a layer's weights are not zero."""
        if weight not in self.counts:
            self.counts[weight] = int(self.read(weight).count_nonzero())
        return self.counts[weight]

    def forget(self) -> None:
        self.packed.clear()
        self.counts.clear()


class PlanFilters:
    """The filters of one plan's layers."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self.weights = weights
        self.layers = {step: i for i, step in enumerate(plan.layers)}
        self.convolutions = {step: convolution_of(step.layer) for step in self.layers}

    def pack_live(self, buffers: Mapping[Value, Blocks]) -> None:
        """All of them, where dead weights are left out: which are dead, the layers tell together."""
        weights = self.weights
        if not weights.dead and any(self._key(step, buffers) not in weights.packed for step in self.layers):
            for step, windows in live_windows(self.plan, weights.read).items():
                self.of(step, buffers, windows)

    def of(self, step: Convolve, buffers: Mapping[Value, Blocks], windows: Tensor | None = None) -> Filters:
        """A layer's filters, packed if they aren't yet; windows: those that are alive."""
        packed, key = self.weights.packed, self._key(step, buffers)
        if key not in packed:
            weight = self.weights.read(step.layer.weight)
            weight = weight if windows is None else without_dead(weight, windows)
            convolution = self.convolutions[step]
            x, out = buffers[step.inputs[0]], buffers[step.out]
            packed[key] = packing.pack(weight.view(convolution.weight_shape), convolution, x, out)
        return packed[key]

    def _key(self, step: Convolve, buffers: Mapping[Value, Blocks]) -> Key:
        return self.layers[step], packing.input_strides(buffers[step.inputs[0]], self.convolutions[step])


def convolution_of(layer: Layer) -> packing.Convolution:
    """A linear layer is a convolution of one pixel."""
    filters, channels = layer.weight.shape[:2]
    return packing.Convolution(
        filters,
        channels * layer.groups,
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        behind=layer.behind,
        dilation=layer.dilation,
        groups=layer.groups,
    )
