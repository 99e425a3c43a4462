"""BatchNorm folded into the layer before it: once its statistics are known, it scales and shifts each channel."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Pair(NamedTuple):
    """A layer and the BatchNorm behind it, and the layer that does the work of both."""

    layer: Layer
    batchnorm: _BatchNorm
    folded: Layer


class Folded:
    """A model in evaluation mode without the BatchNorm layers that directly follow a convolution or a linear layer.

    It shares every other module with the model. `update` has to be called after the model's values changed.

    Attributes:
        network: maps what the model maps, up to rounding.
    """

    def __init__(self, model: nn.Module) -> None:
        self.network = fx.symbolic_trace(model)
        self._pairs = [_fold(self.network, *nodes) for nodes in _foldable(self.network)]
        self.network.recompile()
        self.update()

    def __len__(self) -> int:
        """How many BatchNorm layers were folded."""
        return len(self._pairs)

    @torch.no_grad()
    def update(self) -> None:
        for layer, batchnorm, folded in self._pairs:
            mean, variance = batchnorm.running_mean, batchnorm.running_var
            assert mean is not None and variance is not None
            scale = torch.rsqrt(variance + batchnorm.eps)
            if batchnorm.weight is not None:
                scale = scale * batchnorm.weight
            offset = (mean if layer.bias is None else mean - layer.bias) * -scale
            if batchnorm.bias is not None:
                offset = offset + batchnorm.bias
            weight = layer.weight
            torch.mul(weight, scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1)), out=folded.weight)
            assert folded.bias is not None
            folded.bias.copy_(offset)


def _foldable(network: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Calls of a layer and of the BatchNorm that alone reads its output; each called once, and without hooks."""
    modules = dict(network.named_modules())
    calls: dict[nn.Module, int] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            calls[modules[node.target]] = calls.get(modules[node.target], 0) + 1
    found = []
    for node in network.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, batchnorm = modules[str(before.target)], modules[node.target]
        if (
            type(layer) in LAYERS
            and batchnorm.running_mean is not None
            and not batchnorm.training
            and calls[layer] == calls[batchnorm] == 1
            and not any(m._forward_hooks or m._forward_pre_hooks for m in (layer, batchnorm))
        ):
            found.append((before, node))
    return found


def _fold(network: fx.GraphModule, before: fx.Node, node: fx.Node) -> Pair:
    layer, batchnorm = network.get_submodule(str(before.target)), network.get_submodule(str(node.target))
    assert isinstance(layer, LAYERS) and isinstance(batchnorm, _BatchNorm)
    folded = copy.copy(layer)
    folded._parameters = dict(layer._parameters)
    folded.weight = nn.Parameter(torch.empty_like(layer.weight), requires_grad=False)
    folded.bias = nn.Parameter(layer.weight.new_empty(len(layer.weight)), requires_grad=False)
    name = f"_folded_{len(network.graph.nodes)}_{str(before.target).replace('.', '_')}"
    network.add_submodule(name, folded)
    before.target = name
    node.replace_all_uses_with(before)
    network.graph.erase_node(node)
    return Pair(layer, batchnorm, folded)
