"""Steps in the order in which they run: BatchNorm, additions and activations extend the one before where they can."""

from __future__ import annotations

from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.sparse.results import sample_shape
from lpk.sparse.steps import Affine, Convolve, Step, Value


class Fused:
    """The steps of a graph's nodes, added in the graph's order. values: of the nodes, to which it adds."""

    def __init__(self, values: dict[fx.Node, Value]) -> None:
        self.values = values
        self.steps: list[Step] = []

    def append(self, node: fx.Node, step: Step) -> None:
        self.steps.append(step)
        self.values[node] = step.out

    def _extendable(self, node: fx.Node) -> Convolve | Affine | None:
        """The step that computes this value, if nothing else reads it and no activation was applied to it."""
        value = self.values[node]
        step = next((s for s in reversed(self.steps) if s.out is value), None)
        if isinstance(step, Convolve | Affine) and step.activation == "identity" and len(node.users) == 1:
            return step
        return None

    def batchnorm(self, node: fx.Node, source: fx.Node, module: _BatchNorm) -> None:
        step = self._extendable(source)
        if isinstance(step, Convolve) and step.batchnorm is None and step.residual is None:
            step.batchnorm = module
            self.values[node] = step.out
        else:
            self.append(node, Affine([self.values[source]], Value(sample_shape(node)), module))

    def activation(self, node: fx.Node, source: fx.Node, activation: str) -> None:
        if (step := self._extendable(source)) is not None:
            step.activation = activation
            self.values[node] = step.out
        else:
            self.append(node, Affine([self.values[source]], Value(sample_shape(node)), activation=activation))

    def addition(self, node: fx.Node, a: fx.Node, b: fx.Node) -> None:
        for source, other in ((a, b), (b, a)):
            step = self._extendable(source)
            if step is not None and step.residual is None and source is not other:
                # It runs now, when the other value is there: nobody has read its own so far.
                self.steps.remove(step)
                step.residual = self.values[other]
                step.inputs.append(step.residual)
                self.append(node, step)
                return
        x, residual = self.values[a], self.values[b]
        self.append(node, Affine([x, residual], Value(sample_shape(node)), residual=residual))
