"""What a model makes of its values at its end, in the types that it returns."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lpk.sparse.errors import NotSupported
from lpk.sparse.inputs import Inputs
from lpk.sparse.results import BATCH
from lpk.sparse.steps import Plan


def keep_types(plan: Plan, model: nn.Module, inputs: Inputs) -> None:
    """A graph knows no dicts but the plain one: the ending makes of them what the model returns. Raises NotSupported
    where it can't."""
    assert plan.ending is not None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    returned = inputs.call(model, inputs.examples(BATCH, device))
    graph = plan.ending.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        output.args = (_as_types(graph, output.args[0], returned),)
    for node in graph.nodes:
        node.meta.setdefault("result", None)
    plan.ending.recompile()
    given = [fx.node.map_aggregate(slot.result, lambda x: _zeros(x, device)) for slot in plan.outputs]
    if not _same_types(returned, plan.ending.forward(*given)):
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


def _zeros(result: Any, device: torch.device) -> Any:
    return torch.zeros_like(result, device=device) if isinstance(result, Tensor) else result
