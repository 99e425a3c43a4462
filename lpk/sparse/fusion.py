"""Steps in the order in which they run: BatchNorm, additions and activations extend the one before where they can."""

from __future__ import annotations

from torch import fx

from lpk.networks.known import is_shape_query
from lpk.sparse.results import name_of
from lpk.sparse.steps import IDENTITY, Activation, Affine, AnyStep, Convolve, Multiply, Normalisation, Seen, Step, Value


class Fused:
    """The steps of a graph's nodes, added in the graph's order. seen: the nodes that are values, to which it adds."""

    def __init__(self, seen: dict[fx.Node, Seen]) -> None:
        self.seen = seen
        self.steps: list[AnyStep] = []
        self.shared: set[Value] = set()  # that several nodes are, one of them changed by the other
        self.others: dict[fx.Node, fx.Node] = {}  # a node that is seen in another way than the one it is a view of

    def append(self, node: fx.Node, step: Step, seen: Seen) -> None:
        step.name = name_of(node)
        self.steps.append(step)
        self.seen[node] = seen

    def view(self, node: fx.Node, source: fx.Node, seen: Seen) -> None:
        self.seen[node] = seen
        self.others[node] = source

    def _is_read_once(self, node: fx.Node) -> bool:
        readers = [n for n in node.users if not is_shape_query(n)]
        return len(readers) == 1 and (node not in self.others or self._is_read_once(self.others[node]))

    def _extendable(self, node: fx.Node) -> Convolve | Affine | Multiply | None:
        """The step that computes this value, if nothing else reads it and no activation was applied to it."""
        value = self.seen[node].value
        if value in self.shared:
            return None
        step = next((s for s in reversed(self.steps) if s.out is value), None)
        if isinstance(step, Convolve | Affine | Multiply) and not step.activation and self._is_read_once(node):
            return step
        return None

    def normalisation(self, node: fx.Node, source: fx.Node, found: Normalisation) -> None:
        """A scale and a shift of each channel."""
        step, seen = self._extendable(source), self.seen[source]
        if isinstance(step, Convolve) and step.batchnorm is None and step.residual is None:
            step.batchnorm = found
            self.seen[node] = seen
        else:
            out = Value(seen.value.image)
            self.append(node, Affine([seen.value], out, found), seen.of(out))

    def activation(self, node: fx.Node, source: fx.Node, activation: Activation) -> None:
        seen = self.seen[source]
        if (step := self._extendable(source)) is not None:
            step.activation = activation
            self.seen[node] = seen
        else:
            out = Value(seen.value.image)
            self.append(node, Affine([seen.value], out, activation=activation), seen.of(out))

    def addition(self, node: fx.Node, main: fx.Node, other: fx.Node, added: Seen) -> None:
        """added: the other node, laid out like the main one."""
        seen = self.seen[main]
        pairs = [(main, added)]
        if self.seen.get(other) == added:
            pairs.append((other, seen))
        for source, residual in pairs:
            step = self._extendable(source)
            if isinstance(step, Convolve | Affine) and step.residual is None and main is not other:
                # It runs now, when the other value is there: nobody has read its own so far.
                self.steps.remove(step)
                step.residual = residual.value
                step.inputs.append(step.residual)
                self.steps.append(step)
                self.seen[node] = self.seen[source]
                return
        out = Value(seen.value.image)
        self.append(node, Affine([seen.value, added.value], out, residual=added.value), seen.of(out))

    def product(self, node: fx.Node, x: Seen, y: Seen) -> None:
        out = Value(x.value.image)
        self.append(node, Multiply([x.value, y.value], out, activation=IDENTITY), x.of(out))
