"""What PyTorch's layers need to be fast on a CPU: weights in the order in which oneDNN reads them, which it otherwise
puts them into at every call, and the activation behind a layer in the layer's own loop.

PyTorch has these operations for torch.compile. Where they are missing, nothing is replaced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lpk.networks.plain import is_plain
from lpk.sparse.calls import Call

OPERATIONS = (
    *("_convolution_pointwise", "_linear_pointwise"),
    *("_reorder_convolution_weight", "_reorder_linear_weight"),
)
FEW = 8  # rows: for less of them, oneDNN is no faster than what F.linear calls

# What computes an activation by itself, and its name for oneDNN, its numbers, and which way it is computed there.
Ending = tuple[Callable[[Tensor], Tensor], str, Sequence[float], str]

ENDINGS: dict[str, tuple[str, tuple[float, ...], str]] = {  # by the engine's names
    "relu": ("relu", (), ""),
    "relu6": ("hardtanh", (0.0, 6.0), ""),
    "silu": ("swish", (), ""),
    "hardswish": ("hardswish", (), ""),
    "hardsigmoid": ("hardsigmoid", (), ""),
    "sigmoid": ("sigmoid", (), ""),
    "tanh": ("tanh", (), ""),
    "gelu": ("gelu", (), "none"),
    "gelu tanh": ("gelu", (), "tanh"),
}


def available() -> bool:
    operations = getattr(torch.ops, "mkldnn", None)
    return torch.backends.mkldnn.is_available() and all(hasattr(operations, name) for name in OPERATIONS)


def prepacked(network: fx.GraphModule) -> fx.GraphModule:
    """A network whose convolutions and linear layers are replaced, with the activations that alone read them. Some
    activations make 0 of NaN."""
    for node in list(network.graph.nodes):
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not _can_be_packed(layer) or len(node.args) != 1:
            continue
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        ending = None if reader is None else _ending(network, reader)
        made = PackedConvolution(layer, ending) if isinstance(layer, nn.Conv2d) else PackedLinear(layer, ending)
        name = f"_packed_{node.name}"
        network.add_submodule(name, made)
        node.target = name
        if reader is not None and ending is not None:
            reader.replace_all_uses_with(node)
            network.graph.erase_node(reader)
    return fx.GraphModule(network, network.graph)  # without the weights that are packed


def release(network: fx.GraphModule) -> None:
    """Lets go of weights whose packed form alone is read from now on."""
    for layer in network.modules():
        if isinstance(layer, PackedConvolution) and layer.packed is not None:
            layer.weight = None


def _can_be_packed(layer: nn.Conv2d | nn.Linear) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    weight = layer.weight
    return is_plain(layer, nn.Conv2d, nn.Linear) and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _ending(network: fx.GraphModule, node: fx.Node) -> Ending | None:
    """The activation that a node is, if oneDNN has it."""
    if len(node.args) != 1 or len(node.all_input_nodes) != 1:
        return None
    call = Call(node, dict(network.named_modules()), lambda _: None)
    if is_plain(call.module, nn.Hardtanh):
        return call.module, "hardtanh", (call.module.min_val, call.module.max_val), ""
    found = call.activation()
    if found is None or (found.name not in ENDINGS and found.name != "leaky relu"):
        return None
    by_itself: Callable[[Tensor], Tensor]
    if call.module is not None:
        by_itself = call.module
    elif node.op == "call_method":
        by_itself = operator.methodcaller(str(node.target))
    else:
        by_itself = partial(cast(Any, node.target), **node.kwargs)
    return by_itself, *(("leaky_relu", (found.slope,), "") if found.name == "leaky relu" else ENDINGS[found.name])


class _Packed(nn.Module):
    """A layer and an activation."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, ending: Ending | None) -> None:
        super().__init__()
        self.weight: Tensor | None = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.packed: Tensor | None = None
        by_itself, name, numbers, way = ending or (_identity, "none", (), "")
        self.by_itself = by_itself
        self.ending = name, list(numbers), way

    def linear(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return self.by_itself(F.linear(x, self.weight.flatten(1), self.bias))


class PackedConvolution(_Packed):
    """Packed for the first images it reads, which serves others as well."""

    def __init__(self, layer: nn.Conv2d, ending: Ending | None) -> None:
        super().__init__(layer, ending)
        self.geometry = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        self.is_linear = layer.kernel_size == (1, 1) and layer.groups == 1 and not any(map(int, layer.padding))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_linear and self.weight is not None and x.shape[2:] == (1, 1):  # after a global pooling
            features = self.linear(x.view(x.shape[:2]))
            return features.view(*features.shape, 1, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.packed is None:
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self.packed = pack(self.weight, *self.geometry, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.geometry, *self.ending)


class PackedLinear(_Packed):
    """Packed when it reads more than a few rows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() < FEW * x.shape[-1]:
            return self.linear(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *self.ending)


def _identity(x: Tensor) -> Tensor:
    return x
