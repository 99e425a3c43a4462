"""What a graph's nodes return for batches of any size, without computing values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from lpk.networks.plain import is_patched
from lpk.sparse.results import BATCH
from lpk.sparse.steps import Heads, Seen, Value
from lpk.sparse.views import Layout, heads_in, viewed


class Batch:
    """The results of nodes for a batch of one size, on the meta device.

    Nodes are to be evaluated in their order, but for those that are seen on the engine, and for the inputs: these have
    the batch's size. batched: whether an input's first dimension is the batch.
    """

    def __init__(
        self, graph: fx.GraphModule, seen: Mapping[fx.Node, Seen], batched: Mapping[fx.Node, bool], size: int
    ) -> None:
        self.seen = seen
        self.batched = batched
        self.size = size
        self._interpreter = _OnMeta(graph, garbage_collect_values=False)

    def evaluate(self, node: fx.Node) -> Any:
        """What a node returns. Raises whatever an operation does that needs values, and where one did before."""
        known = self._interpreter.env
        if node in known:
            return known[node]
        self._prepare(node)
        if node in self.batched:
            known[node] = self._input(node.meta["result"], self.batched[node])
        else:
            known[node] = _to_meta(self._interpreter.run_node(node))
        return known[node]

    def through(self, views: Sequence[fx.Node], root: fx.Node, given: Tensor) -> Tensor:
        """What views, one after the other, make of a tensor in the place of what the root returns."""
        values: dict[fx.Node, Any] = {root: given}
        for node in views:
            self._prepare(node)
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda n: values[n] if n in values else self.evaluate(n)
            )
            values[node] = getattr(self._interpreter, node.op)(node.target, args, kwargs)
        made: Tensor = values[views[-1]]
        return made

    def layout(self, node: fx.Node, source: fx.Node, seen: Seen) -> Layout | None:
        """How a view of what is seen on the engine is seen; None if not on the engine."""
        return viewed(seen, self.size, lambda given: self.through([node], source, given))

    def heads(self, views: Sequence[fx.Node], root: fx.Node, seen: Seen) -> tuple[Heads, int, int] | None:
        """Where the heads lie of which views make queries, keys or values; their number, and that of theirs."""
        return heads_in(seen, self.size, lambda given: self.through(views, root, given))

    def attended(self, views: Sequence[fx.Node], root: fx.Node, out: Value, count: int) -> Layout | None:
        """How views of what attention returns, [B, heads, tokens, numbers], are seen, if `out` holds it."""

        def view(given: Tensor) -> Tensor:
            return self.through(views, root, given.unflatten(2, (count, -1)).transpose(1, 2))

        return viewed(Seen(out, (out.pixels, out.channels), True), self.size, view)

    def channels(self, views: Sequence[fx.Node], root: fx.Node, shape: Sequence[int]) -> list[int] | None:
        """The channels of images [*shape] that views, one after the other, make images of the same shape of: those that
        the result's channels are; None where it is made of something else.

        They are tried on values that say which sample and channel they are from.
        """
        count, size = shape[0], self.size
        numbers = torch.arange(size * count, dtype=torch.float32, device="cpu").view(size, count, 1, 1)
        made = self.through(views, root, numbers.expand(size, *shape).contiguous())
        found = made[:1, :, :1, :1]
        expected = found + count * torch.arange(size, dtype=torch.float32, device="cpu").view(-1, 1, 1, 1)
        return [int(number) for number in found.flatten()] if bool((made == expected).all()) else None

    def _prepare(self, node: fx.Node) -> None:
        known = self._interpreter.env
        for n in node.all_input_nodes:
            if n not in known and n in self.seen:
                seen = self.seen[n]
                known[n] = torch.empty(self.size * seen.times, *seen.shape, dtype=torch.float32, device="meta")
            elif n not in known and n in self.batched:
                known[n] = self._input(n.meta["result"], self.batched[n])
            elif n not in known and n.op == "get_attr":
                known[n] = _to_meta(self._interpreter.run_node(n))

    def _input(self, result: Tensor, batched: bool) -> Tensor:
        shape = (self.size, *result.shape[1:]) if batched else result.shape
        return torch.empty(shape, dtype=result.dtype, device="meta")


class View(NamedTuple):
    """What nodes, that view a value one after the other, make of it: what `seen` returns, for every batch."""

    nodes: Sequence[fx.Node]
    seen: Callable[[Batch], Any]
    expected: Any


class Assumptions:
    """What a plan takes for granted: numbers that are the same for every batch, and views of a sample's values.

    It is checked for each size of a batch before that is computed: sizes may be compared and divided.
    """

    def __init__(self, graph: fx.GraphModule, seen: Mapping[fx.Node, Seen], batched: Mapping[fx.Node, bool]) -> None:
        self.graph = graph
        self.seen = seen
        self.batched = batched
        self.numbers: dict[fx.Node, Any] = {}
        self.views: list[View] = []
        self.shapes: dict[fx.Node, tuple[int, tuple[int, ...]]] = {}  # rows for each sample, and their shape

    def hold(self, size: int) -> bool:
        batch = Batch(self.graph, self.seen, self.batched, size)
        try:
            for node in self._needed():
                batch.evaluate(node)
            return (
                all(batch.evaluate(node) == number for node, number in self.numbers.items())
                and all(view.seen(batch) == view.expected for view in self.views)
                and all(batch.evaluate(n).shape == (size * rows, *rest) for n, (rows, rest) in self.shapes.items())
            )
        except Exception:  # whatever an operation raises for this size
            return False

    def _needed(self) -> Collection[fx.Node]:
        """What has to be evaluated, in order."""
        asked = {*self.numbers, *self.shapes}
        viewing = {node for view in self.views for node in view.nodes}
        needed = asked | {n for node in viewing for n in node.all_input_nodes if n not in self.seen}
        for node in reversed(self.graph.graph.nodes):
            if node in needed:
                needed.update(n for n in node.all_input_nodes if n not in self.seen and n not in self.batched)
        return [node for node in self.graph.graph.nodes if node in needed]


def has_batch(result: Any) -> bool:
    """Whether a result for BATCH samples is a float32 tensor whose rows may be theirs."""
    if not isinstance(result, Tensor) or result.dtype != torch.float32 or result.dim() < 2:
        return False
    return len(result) > 0 and len(result) % BATCH == 0


class _OnMeta(fx.Interpreter):
    """With the parameters' shapes instead of their values."""

    def fetch_attr(self, target: str) -> Any:
        return _to_meta(super().fetch_attr(target))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        assert isinstance(module, nn.Module)
        if any(map(is_patched, module.modules())):
            raise ValueError(f"{target} is called for results only")
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return functional_call(module, {name: t.to("meta") for name, t in state.items()}, args, kwargs)


def _to_meta(result: Any) -> Any:
    return fx.node.map_aggregate(result, lambda x: x.detach().to("meta") if isinstance(x, Tensor) else x)
