"""What a model makes of its values at its end, in the types that it returns."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, fx, nn

from lpk.sparse.errors import NotSupported
from lpk.sparse.steps import Plan


def keep_types(plan: Plan, model: nn.Module, inputs: Tensor) -> None:
    """A graph knows no dicts but the plain one: the ending makes of them what the model returns. Raises NotSupported
    where it can't."""
    assert plan.ending is not None
    returned = model(inputs)
    graph = plan.ending.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (_as_types(graph, output.args[0], returned),)
    plan.ending.recompile()
    if not _same_types(returned, plan.ending.forward(*(inputs.new_zeros(len(inputs), *v.shape) for v in plan.outputs))):
        raise NotSupported(f"the model returns a value of type {type(returned).__name__}, which torch.fx does not keep")


def _as_types(graph: fx.Graph, result: Any, returned: Any) -> Any:
    """What a graph returns, with its dicts made an OrderedDict, or a dict that is a dataclass (transformers' outputs),
    where they are that in what the model returned."""
    if isinstance(result, dict) and isinstance(returned, dict) and list(result) == list(returned):
        items = {key: _as_types(graph, value, returned[key]) for key, value in result.items()}
        if type(returned) is OrderedDict:
            return graph.call_function(OrderedDict, (items,))
        return graph.call_function(type(returned), (), items) if is_dataclass(returned) else items
    plain = type(returned) in (tuple, list) and isinstance(result, type(returned)) and len(result) == len(returned)
    if plain and not hasattr(result, "_fields"):
        return type(result)(_as_types(graph, *both) for both in zip(result, returned, strict=True))
    return result


def _same_types(a: Any, b: Any) -> bool:
    """Whether two results are made of the same types."""
    if isinstance(a, dict) and isinstance(b, dict):
        return type(a) is type(b) and list(a) == list(b) and all(_same_types(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same_types, a, b))
    return type(a) is type(b)
