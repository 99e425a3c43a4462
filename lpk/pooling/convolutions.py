"""What PyTorch's layers need to be fast on a GPU.

Weights as its kernels read them (channels last, in the dtype that they compute in), written once for each network and
not converted at every call; and the bias, an addition and the ReLU behind a convolution in the convolution's own
kernel, in place of a pass over memory for each.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from lpk.networks.plain import is_plain

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE = (operator.iadd, "add_")
RELUS = (torch.relu, torch.relu_, nn.functional.relu, "relu", "relu_")


def laid_out(weight: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Memory for a weight [out, in, ...] as a GPU's kernels read it."""
    return torch.empty_like(weight, dtype=autocast or weight.dtype, memory_format=_layout(weight))


class LaidOut:
    """Copies of a model's weights that are laid out as a GPU's kernels read them, where the weights are not.

    Attributes:
        copies: what `write` changes.
    """

    def __init__(self, model: nn.Module, autocast: torch.dtype | None) -> None:
        self._layers: list[nn.Conv2d | nn.Linear] = []
        made: dict[int, tuple[Tensor, nn.Parameter]] = {}
        for layer in model.modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear) or not is_plain(layer, type(layer)):
                continue
            weight = layer.weight
            if weight.dtype == (autocast or weight.dtype) and weight.is_contiguous(memory_format=_layout(weight)):
                continue
            made.setdefault(id(weight), (weight, nn.Parameter(laid_out(weight, autocast), requires_grad=False)))
            self._layers.append(layer)
        self._weights = [weight for weight, _ in made.values()]
        self.copies: list[Tensor] = [copy for _, copy in made.values()]
        self._used = [made[id(layer.weight)][1] for layer in self._layers]

    def __len__(self) -> int:
        return len(self._layers)

    def write(self) -> None:
        """Copies the values that the model has now."""
        for copy, weight in zip(self.copies, self._weights, strict=True):
            copy.copy_(weight)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with the copies."""
        own = [layer._parameters["weight"] for layer in self._layers]
        try:
            for layer, copy in zip(self._layers, self._used, strict=True):
                layer._parameters["weight"] = copy
            yield
        finally:
            for layer, weight in zip(self._layers, own, strict=True):
                layer._parameters["weight"] = weight


class Fused(nn.Module):
    """relu(layer(x)), or relu(layer(x) + addend), in one kernel of cuDNN."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        layer = self.layer
        weight, bias, padding = layer.weight, layer.bias, layer.padding
        assert not isinstance(padding, str)
        x = x.to(weight.dtype)  # autocast does not know these functions
        if addend is None:
            return torch.cudnn_convolution_relu(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
        addend = addend.to(weight.dtype)
        return torch.cudnn_convolution_add_relu(
            x, weight, addend, 1.0, bias, layer.stride, padding, layer.dilation, layer.groups
        )


def fuse(network: fx.GraphModule, layers: Collection[nn.Module]) -> int:
    """Puts `Fused` in the place of those of these layers whose output is read by a ReLU alone, or by an addition alone
    whose sum is. Returns how many."""
    fusible = [node for node in network.graph.nodes if node.op == "call_module" and _is_fusible(network, node, layers)]
    count = 0
    for node in fusible:
        last, addend = _only_user(node), None
        if last is not None and last.op != "call_module" and last.target in ADDITIONS:
            addend = _addend(last, node, fusible)
            last = None if addend is None else _only_user(last)
        if last is None or not _is_relu(network, last):
            continue
        name = f"_fused_{count}_{str(node.target).replace('.', '_')}"
        network.add_submodule(name, Fused(network.get_submodule(str(node.target))))  # type: ignore[arg-type]
        with network.graph.inserting_before(last):
            fused = network.graph.call_module(name, (*node.args, *([] if addend is None else [addend])))
        last.replace_all_uses_with(fused)
        addition = () if addend is None else tuple(node.users)
        for replaced in (last, *addition, node):
            network.graph.erase_node(replaced)
        count += 1
    network.graph.lint()
    return count


def _layout(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format


def _is_fusible(network: fx.GraphModule, node: fx.Node, layers: Collection[nn.Module]) -> bool:
    layer = network.get_submodule(str(node.target))
    return (
        layer in layers
        and is_plain(layer, nn.Conv2d)
        and layer.bias is not None
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and len(node.args) == 1
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _addend(addition: fx.Node, node: fx.Node, fusible: Sequence[fx.Node]) -> fx.Node | None:
    """What is added to a convolution's output; None where it can't be fused: where it is a number or the same tensor,
    is changed in place, or is the output of a later convolution, which can be fused in place of this one."""
    others = [operand for operand in addition.all_input_nodes if operand is not node]
    if len(others) != 1 or len(addition.args) != 2 or addition.kwargs:
        return None
    (other,) = others
    if addition.target in IN_PLACE and addition.args[0] is not node:
        return None
    return None if other in fusible and other > node and _only_user(other) is addition else other


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_plain(network.get_submodule(str(node.target)), nn.ReLU)
    return node.target in RELUS and len(node.all_input_nodes) == 1
