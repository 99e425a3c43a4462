"""A graph without BatchNorm: once its statistics are known, it scales and shifts each channel, which the layer before
it can do."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.plain import is_patched, is_plain
from lpk.networks.tracing import trace

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear

# What BatchNorm has, and F.batch_norm is given.
READ = ("running_mean", "running_var", "weight", "bias")


class Pair(NamedTuple):
    """A layer and the BatchNorm behind it, and the layer that does the work of both."""

    layer: Layer
    batchnorm: _BatchNorm
    folded: Layer


class Folded:
    """A model in evaluation mode without the BatchNorm layers that directly follow a convolution or a linear layer.

    It shares every other module with the model. `update` has to be called after the model's values changed.

    Args:
        network: the model's graph, which is changed; None: it is traced.

    Attributes:
        network: maps what the model maps, up to rounding.
    """

    def __init__(self, model: nn.Module, network: fx.GraphModule | None = None) -> None:
        self.network = trace(model, changing=True) if network is None else network
        _open(self.network)
        self.pairs = [_fold(self.network, *found) for found in _foldable(self.network)]
        self.network.recompile()
        self.update()

    def tensors(self) -> list[Tensor]:
        """What `update` changes."""
        folded = [pair.folded for pair in self.pairs]
        return [x for layer in folded for x in (layer.weight, layer.bias) if x is not None]

    def __len__(self) -> int:
        """How many BatchNorm layers were folded."""
        return len(self.pairs)

    @torch.no_grad()
    def update(self) -> None:
        if not self.pairs:
            return
        # For all layers at once: on a GPU each would be half a dozen kernels that take longer to start than to run.
        layers, norms, folded = zip(*self.pairs, strict=True)
        scales = list(torch._foreach_add([norm.running_var for norm in norms], [norm.eps for norm in norms]))
        torch._foreach_rsqrt_(scales)
        _each(torch._foreach_mul_, scales, [norm.weight for norm in norms])
        offsets = [torch.empty_like(norm.running_mean) for norm in norms]
        torch._foreach_copy_(offsets, [norm.running_mean for norm in norms])
        _each(torch._foreach_sub_, offsets, [layer.bias for layer in layers])
        torch._foreach_mul_(offsets, torch._foreach_neg(scales))
        _each(torch._foreach_add_, offsets, [norm.bias for norm in norms])
        torch._foreach_copy_([layer.bias for layer in folded], offsets)
        for layer, scale, own in zip(layers, scales, folded, strict=True):
            weight = layer.weight
            torch.mul(weight, scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1)), out=own.weight)


def _each(
    change: Callable[[list[Tensor], list[Tensor]], object], values: list[Tensor], by: list[Tensor | None]
) -> None:
    """Changes each value in place by its number; by None not at all."""
    some = [(value, number) for value, number in zip(values, by, strict=True) if number is not None]
    if some:
        change([value for value, _ in some], [number for _, number in some])


def alike(a: object, b: object) -> bool:
    """Whether two ways of computing the same gave the same tensor, up to rounding: that of all layers adds up."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    rounding = 1e-1 if b.dtype.itemsize == 2 else 1e-2
    return a.shape == b.shape and bool((a - b).abs().max() <= rounding * b.abs().max())


def _open(network: fx.GraphModule) -> None:
    """Puts what they do in the place of calls of layers that are BatchNorm and something else, as timm's are: they call
    F.batch_norm, which can be folded, and an activation."""
    for node in list(network.graph.nodes):
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, _BatchNorm) or type(module) in BATCHNORMS:
            continue
        if is_patched(module) or module._forward_hooks or module._forward_pre_hooks or len(node.args) != 1:
            continue
        try:
            inner = trace(module, changing=True).graph
        except ValueError:
            continue
        _insert(network.graph, inner, node)


def _insert(graph: fx.Graph, inner: fx.Graph, node: fx.Node) -> None:
    """Puts the graph of a module in the place of the node that calls it."""
    known: dict[fx.Node, Any] = {}
    with graph.inserting_before(node):
        for n in inner.nodes:
            if n.op == "placeholder":
                known[n] = node.args[0]
            elif n.op == "output":
                node.replace_all_uses_with(known[n.args[0]])
            else:
                known[n] = graph.node_copy(n, known.__getitem__)
                if n.op in ("call_module", "get_attr"):
                    known[n].target = f"{node.target}.{n.target}"
    graph.erase_node(node)


def _foldable(network: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, _BatchNorm]]:
    """Calls of a layer and of the BatchNorm that alone reads its output; each called once, and without hooks."""
    called = [module for node in network.graph.nodes if (module := _called(network, node)) is not None]
    found = []
    for node in network.graph.nodes:
        batchnorm = _batchnorm(network, node)
        before = node.args[0] if node.args else None
        if batchnorm is None or not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        layer = _called(network, before)
        if is_plain(layer, *LAYERS) and called.count(layer) == called.count(batchnorm) == 1:
            found.append((before, node, batchnorm))
    return found


def _called(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or whose BatchNorm it is."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else _owner(network, node)


def _batchnorm(network: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    """The layer that has the values of a node that is BatchNorm, and nothing else, with known statistics."""
    module = _called(network, node)
    plain = is_plain(module, *BATCHNORMS) if node.op == "call_module" else module is not None
    return module if plain and isinstance(module, _BatchNorm) and module.running_mean is not None else None


def _owner(network: fx.GraphModule, node: fx.Node) -> _BatchNorm | None:
    """The module of which F.batch_norm reads all values."""
    if node.op != "call_function" or node.target is not F.batch_norm:
        return None
    given = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    options = given.arguments
    path = str(getattr(options["running_mean"], "target", "")).rpartition(".")[0]
    try:
        module = network.get_submodule(path)
    except AttributeError:
        return None
    if not isinstance(module, _BatchNorm) or options["training"] or options["eps"] != module.eps:
        return None
    fits = all(_reads(options[name], f"{path}.{name}") or options[name] is getattr(module, name) for name in READ)
    return module if fits else None


def _reads(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target == name


def _fold(network: fx.GraphModule, before: fx.Node, node: fx.Node, batchnorm: _BatchNorm) -> Pair:
    layer = network.get_submodule(str(before.target))
    assert isinstance(layer, LAYERS)
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
