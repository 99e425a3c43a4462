"""What a graph's nodes return for batches of any size, without computing values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from lpk.networks.plain import is_patched
from lpk.sparse.steps import Value


class Batch:
    """The results of nodes for a batch of one size, on the meta device.

    Nodes are to be evaluated in their order, but for those that are values: these have the batch's size.
    """

    def __init__(self, graph: fx.GraphModule, values: Mapping[fx.Node, Value], size: int) -> None:
        self.values = values
        self.size = size
        self._interpreter = _OnMeta(graph, garbage_collect_values=False)

    def evaluate(self, node: fx.Node) -> Any:
        """What a node returns. Raises whatever an operation does that needs values, and where one did before."""
        known = self._interpreter.env
        if node in known:
            return known[node]
        for n in node.all_input_nodes:
            if n not in known and n in self.values:
                known[n] = torch.empty(self.size, *self.values[n].shape, dtype=torch.float32, device="meta")
        known[node] = _to_meta(self._interpreter.run_node(node))
        return known[node]


class Assumptions:
    """What a plan takes for granted: numbers that are the same for every batch, and views of a sample's values.

    It is checked for each size of a batch before that is computed: sizes may be compared and divided.
    """

    def __init__(self, graph: fx.GraphModule, values: Mapping[fx.Node, Value]) -> None:
        self.graph = graph
        self.values = values
        self.numbers: dict[fx.Node, Any] = {}
        self.views: set[fx.Node] = set()

    def hold(self, size: int) -> bool:
        batch = Batch(self.graph, self.values, size)
        try:
            results = {node: batch.evaluate(node) for node in self._needed()}
        except Exception:  # whatever an operation raises for this size
            return False
        return all(results[node] == number for node, number in self.numbers.items()) and all(
            results[node].shape == (size, *self.values[node].shape) for node in self.views
        )

    def _needed(self) -> Collection[fx.Node]:
        """What has to be evaluated, in order."""
        needed = {*self.numbers, *self.views}
        for node in reversed(self.graph.graph.nodes):
            if node in needed:
                needed.update(n for n in node.all_input_nodes if n not in self.values)
        return [node for node in self.graph.graph.nodes if node in needed]


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
