"""What the nodes of a graph return when it runs once, and what they change in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from lpk.sparse.errors import Fails

BATCH = 2  # samples that a model is traced with


class Results(fx.Interpreter):
    """Notes in the meta of each node its `result` for a batch, tensors without their values; and as `changes` the nodes
    whose results it changes in place before they are read again, each with whether that is its own result.

    Raises Fails.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # no nodes as torch.fx writes them in errors

    def run_node(self, n: fx.Node) -> Any:
        before = {(m, i): _version(t) for m, result in self.env.items() for i, t in enumerate(tensors(result))}
        try:
            result = super().run_node(n)
        except Exception as error:  # whatever an operation raises
            raise Fails(f"{name_of(n)} fails: {error}") from error
        n.meta["result"] = fx.node.map_aggregate(result, lambda x: x.to("meta") if isinstance(x, Tensor) else x)
        n.meta["changes"] = [
            (m, t is result)
            for m, found in self.env.items()
            for i, t in enumerate(tensors(found))
            if _version(t) != before[m, i] and m not in self.user_to_last_uses.get(n, ())
        ]
        return result


def name_of(node: fx.Node) -> str:
    """An operation as whoever wrote the model knows it: the path of a module, or a function and where it is called."""
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    line = node.meta.get("line")
    return f"{name} ({line})" if line else name


def described(output: Any) -> str:
    """What a model returns."""
    result = output.meta["result"] if isinstance(output, fx.Node) else output
    if not isinstance(result, Tensor):
        return f"a value of type {type(result).__name__}"
    return f"{result.dtype} of the shape {list(result.shape)} for {BATCH} samples"


def tensors(result: Any) -> list[Tensor]:
    """What a node returns, as far as it is tensors."""
    found: list[Tensor] = []
    fx.node.map_aggregate(result, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found


def _version(tensor: Tensor) -> int:
    """How often it was changed in place."""
    return 0 if tensor.is_inference() else tensor._version
