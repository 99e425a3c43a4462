"""Proxies that know what they stand for: a model may then ask for shapes while it is traced, and decide by them.

What it learns is the same for every call with such inputs, or else noted as assumed. Decisions by what tensors hold
stay an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

SHAPES = ("shape", "ndim", "dtype", "device", "is_cuda", "layout", "itemsize")  # attributes that are no values
SIZES = ("size", "dim", "numel", "ndimension", "nelement", "is_floating_point", "stride")  # and methods


def is_shape_query(node: fx.Node) -> bool:
    """Whether a node reads of a tensor nothing but its shape, or what else does not change with its values."""
    if node.op == "call_function":
        return node.target is len or (node.target is getattr and node.args[1] in SHAPES)
    return node.op == "call_method" and node.target in SIZES


class Known:
    """What the nodes of a graph return for example inputs, found out while it is traced.

    `evaluating`: the nodes that are made meanwhile are no part of the model's call.
    """

    def __init__(self, root: torch.nn.Module, examples: Sequence[Tensor]) -> None:
        self.root = root
        self.examples = iter(examples)
        self.results: dict[fx.Node, Any] = {}
        self.evaluating = False

    def add(self, node: fx.Node) -> None:
        """Runs a new node."""
        if node.op == "output":
            return
        self.evaluating = True
        try:
            with torch.no_grad():
                self.results[node] = self._result(node)
        finally:
            self.evaluating = False

    def _result(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return next(self.examples)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.results.__getitem__)
        if node.op == "get_attr":
            found: Any = self.root
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        function: Callable[..., Any] = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target  # type: ignore[assignment]
        return function(*(args[1:] if node.op == "call_method" else args), **kwargs)

    def number(self, node: fx.Node) -> Any:
        """What a node that is no tensor returns, which is assumed from now on: whoever reads the graph has to see
        whether shapes alone tell it. Raises LookupError for a tensor."""
        found = self.results[node]
        if isinstance(found, Tensor):
            raise LookupError
        node.meta["assumed"] = found
        return found

    def proxy(self, node: fx.Node, tracer: Any) -> fx.Proxy:
        return _Proxy(node, tracer)


class _Knowing:
    """What a proxy can tell of itself."""

    node: fx.Node
    tracer: Any

    def __getattr__(self, name: str) -> Any:
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def __len__(self) -> int:
        return int(self.tracer.create_proxy("call_function", len, (self,), {}))

    def __index__(self) -> int:
        return int(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __contains__(self, other: Any) -> bool:
        return any(other == each for each in self)


class _Proxy(_Knowing, fx.Proxy):
    pass


class _Attribute(_Knowing, fx.proxy.Attribute):
    pass
