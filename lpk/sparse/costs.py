"""What a network takes in PyTorch and on the engine, by the shapes of its values alone.

Seconds of one thread of the machine that the numbers were fitted on; elsewhere their ratios count, and with several
threads, too, which both share their work among. PyTorch's are those of lpk.sparse.dense: packed layers, channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.nn.modules import activation, batchnorm, conv, dropout

from lpk.sparse.calls import pair
from lpk.sparse.dense import PART
from lpk.sparse.results import BATCH, tensors

NEAR = 8 << 20  # bytes: what is beyond has left the caches before it is read again


class Cost(NamedTuple):
    """Nanoseconds of one call, product and byte that is read or written, and what a byte beyond NEAR takes besides."""

    call: float
    product: float
    byte: float
    far: float

    def seconds(self, products: float, bytes: float) -> float:
        return 1e-9 * (self.call + self.product * products + self.byte * bytes + self.far * max(0, bytes - NEAR))


# Fitted by bench.sparse_costs on one Zen 4 core with AVX-512 that was not idle, PyTorch 2.14. Behind each kind:
# by which factor its cases are off, in the mean and at most. PyTorch's are timed within networks, where a call
# finds neither its code nor its inputs in the nearest cache; the engine's by themselves.
PYTORCH = {
    "convolution": Cost(59291, 0.0172, 0.0555, 0),  # 1.11, 2.83
    "depthwise": Cost(62199, 0.03, 0.0324, 0.0689),  # 1.20, 2.64
    "grouped": Cost(40220, 0.0148, 0.161, 0.369),  # 1.14, 1.74
    "linear": Cost(127598, 0.0178, 0.0534, 0),  # 1.10, 1.69
    "matmul": Cost(6791, 0.031, 0, 0),  # 1.15, 1.53
    "normalisation": Cost(44609, 0.183, 0.0433, 0.0134),  # 1.14, 1.77
    "elementwise": Cost(16615, 0.289, 0.0204, 0.00349),  # 1.63, 3.74
    "copy": Cost(11756, 0.394, 0.0313, 0.0414),  # 1.40, 3.84
    "view": Cost(6666, 0, 0, 0),  # 3.76, 19.34
    "other": Cost(51496, 0.0842, 0.0531, 0.0276),  # 1.31, 2.42
}
ENGINE = {
    "convolution": Cost(1698, 0.0182, 0.00399, 0),  # 1.00, 1.01
    "elementwise": Cost(1382, 0, 0.0126, 0.0504),  # 1.14, 1.53
    "pool": Cost(1451, 0, 0.026, 0.144),  # 1.07, 1.12
    "normalisation": Cost(1400, 0, 0.04, 0.05),  # not fitted: as three passes
    "attention": Cost(5040, 0.0191, 0.0494, 0.193),  # 1.06, 1.14
    "relayout": Cost(1376, 0, 0.0713, 0),  # 1.02, 1.04
    "pack": Cost(9603, 0, 0.0656, 0.0771),  # 1.51, 3.27
    "unpack": Cost(7527, 0, 0.0662, 0.0498),  # 1.14, 1.20
}

# Products of an element, for what takes more than to read and write it.
EFFORT = {
    **dict.fromkeys(("gelu", "silu", "sigmoid", "softplus", "mish", "exp", "elu", "selu", "logsigmoid"), 1.0),
    **{"tanh": 6.0, "layernorm": 1.0, "groupnorm": 1.0, "rmsnorm": 1.0, "softmax": 0.6, "logsoftmax": 0.6},
}

# Functions and methods, without underscores.
PRODUCTS = {"linear": "linear", "addmm": "linear", "conv1d": "convolution", "conv2d": "convolution"}
MATMULS = {"matmul", "bmm", "baddbmm", "einsum", "scaleddotproductattention"}
NORMALISATIONS = {
    "batchnorm",
    "layernorm",
    "groupnorm",
    "instancenorm",
    "rmsnorm",
    "softmax",
    "logsoftmax",
    "normalize",
}
VIEWS = {
    *("view", "permute", "transpose", "t", "getitem", "chunk", "split", "unbind", "squeeze", "unsqueeze", "expand"),
    *("expandas", "unflatten", "movedim", "swapaxes", "select", "narrow", "detach", "dropout", "identity", "dropout2d"),
    *("stochasticdepth", "droppath"),
}
PERHAPS_VIEWS = {"reshape", "flatten", "contiguous"}
COPIES = {"cat", "concat", "stack", "roll", "pad", "clone", "repeat", "indexselect", "gather", "embedding"}
ELEMENTWISE = {
    *("add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "neg", "pow", "sqrt", "rsqrt", "abs"),
    *("exp", "sigmoid", "tanh", "relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "leakyrelu"),
    *("elu", "selu", "mish", "softplus", "logsigmoid", "clamp", "maximum", "minimum", "where", "maskedfill", "prelu"),
}


def pytorch_seconds(kind: str, *, products: float, bytes: float, groups: int = 1) -> float:
    """What an operation of PyTorch takes.

    Args:
        kind: "convolution", "depthwise", "linear", "matmul", "normalisation", "elementwise", "copy", "view", "other".
        products: multiplications and additions; for what has none, its elements times EFFORT, transposed ones for a
            copy, and those of all windows for a pooling.
        bytes: of what is read and written, weights included.
        groups: of a convolution.
    """
    if kind == "convolution" and groups > 1:
        kind = "grouped"
    return PYTORCH[kind].seconds(products, bytes)


def engine_seconds(kind: str, *, products: float, bytes: float) -> float:
    """What a step of the engine takes.

    Args:
        kind: "convolution", "attention", "elementwise", "pool", "normalisation", "relayout", "pack", "unpack".
        products: of a convolution, in products of the dense loop (csrc/cpu/engine/costs.cpp weighs others by it).
        bytes: of the activations that are read and written, in float32; a convolution's do not count, but beyond NEAR.
    """
    return ENGINE[kind].seconds(products, bytes)


def network_seconds(graph: fx.GraphModule, batch: int = BATCH) -> float:
    """What lpk.sparse.dense takes for a network whose nodes have their results on the meta device, for a batch of
    BATCH, as meta["result"]. BatchNorm is folded there, and activations are computed with the layers before them."""
    nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    largest = max((_size(x) for node in nodes for x in tensors(node.meta["result"])), default=0) * batch / BATCH
    parts = max(1, min(batch, math.ceil(largest / PART)))
    total = 0.0
    for node in nodes:
        module = _module(graph, node)
        inputs = [x for n in node.all_input_nodes for x in tensors(n.meta["result"])]
        work = work_of(node, node.meta["result"], inputs, module, batch / parts)
        if is_absorbed(graph, node):
            total += 1e-9 * PYTORCH["elementwise"].product * (0 if work.kind == "normalisation" else work.products)
        else:
            total += pytorch_seconds(work.kind, products=work.products, bytes=work.bytes, groups=work.groups)
    return parts * total


class Work(NamedTuple):
    """The arguments of `pytorch_seconds`."""

    kind: str
    products: float = 0.0
    bytes: float = 0.0
    groups: int = 1


def work_of(
    node: fx.Node, result: Any, inputs: Sequence[Tensor], module: nn.Module | None, batch: float = BATCH
) -> Work:
    """What a node of a graph does.

    Args:
        result: what it returns for BATCH samples, on the meta device.
        inputs: the tensors that it reads, in their order, likewise.
        module: what it calls, if that is a module.
        batch: the number of samples that is asked for.
    """
    name = name_of(node, module)
    made = tensors(result)
    kind = _kind(name, module, inputs, made)
    if kind == "view" or not made or not inputs:
        return Work("view")
    weights = list(module.parameters()) if module is not None else _weights(node, inputs)
    moved = batch / BATCH * sum(map(_size, (*made, *(x for x in inputs if all(x is not w for w in weights)))))
    products = batch / BATCH * _products(kind, name, module, inputs, made[0])
    groups = _groups(module, node) if kind == "convolution" else 1
    if groups > 1 and groups == made[0].shape[1]:
        kind = "depthwise"
    return Work(kind, products, moved + sum(map(_size, weights)), groups)


def name_of(node: fx.Node, module: nn.Module | None) -> str:
    """Of a module's class, a function or a method: small letters, without underscores."""
    name = type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))
    return name.lower().replace("_", "")


def _kind(name: str, module: nn.Module | None, inputs: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    if isinstance(module, conv._ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear) or name in PRODUCTS:
        return PRODUCTS.get(name, "linear")
    if isinstance(module, batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.Softmax) or name in NORMALISATIONS:
        return "normalisation"
    if isinstance(module, dropout._DropoutNd) or name in VIEWS:
        return "view"
    if name in PERHAPS_VIEWS:
        return "view" if made and inputs and _is_view(name, inputs[0], made[0]) else "copy"
    is_attention = isinstance(module, nn.MultiheadAttention)
    if name in ELEMENTWISE or (type(module).__module__ == activation.__name__ and not is_attention):
        return "elementwise"
    if is_attention:
        return "linear"  # four of them, which take more than what is between them
    return "matmul" if name in MATMULS else "copy" if name in COPIES else "other"


def _products(kind: str, name: str, module: nn.Module | None, inputs: Sequence[Tensor], made: Tensor) -> float:
    if kind == "convolution":
        weight = module.weight if isinstance(module, conv._ConvNd) else inputs[1]
        outputs = inputs[0] if isinstance(module, conv._ConvTransposeNd) else made
        return outputs.numel() * weight[0].numel()
    if kind in ("linear", "matmul"):
        if isinstance(module, nn.MultiheadAttention):  # its four linear layers, and attention
            tokens = inputs[0].shape[-2] if module.batch_first else inputs[0].shape[0]
            return inputs[0].numel() * (4 * module.embed_dim + 2 * tokens)
        if name == "scaleddotproductattention":
            return 2 * inputs[0].numel() * inputs[1].shape[-2]
        return made.numel() * (inputs[0].shape[-1] if inputs and inputs[0].dim() else 1)
    if kind == "copy":  # a transposition
        return made.numel() if inputs and inputs[0].dim() > 1 and inputs[0].stride(-1) != 1 and _is_narrow(made) else 0
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        high, wide = pair(module.kernel_size)
        return made.numel() * high * wide
    return made.numel() * EFFORT.get(name, 0.0)


def _is_narrow(x: Tensor) -> bool:
    """Whether its last dimension is the innermost."""
    return x.dim() > 0 and x.stride(-1) == 1


def _is_view(name: str, x: Tensor, made: Tensor) -> bool:
    if name == "contiguous":
        return x.stride() == made.stride()
    try:
        x.view(made.shape)
    except RuntimeError:
        return False
    return True


def _weights(node: fx.Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a function reads that is the same for any batch."""
    return [x for n, x in zip(node.all_input_nodes, inputs, strict=False) if n.op == "get_attr"]


def _groups(module: nn.Module | None, node: fx.Node) -> int:
    if isinstance(module, conv._ConvNd):
        return module.groups
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return groups if isinstance(groups, int) else 1


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_absorbed(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the layer before it does what a node does: BatchNorm and activations."""
    before = node.all_input_nodes[0] if node.all_input_nodes else None
    if before is None or len(before.users) != 1 or before.op in ("placeholder", "get_attr"):
        return False
    module = _module(graph, node)
    name, layer = name_of(node, module), _module(graph, before)
    is_batchnorm = _is_batchnorm(node, module)
    is_activation = len(node.all_input_nodes) == 1 and _kind(name, module, (), ()) == "elementwise"
    if is_batchnorm or is_activation:
        after = isinstance(layer, conv._ConvNd | nn.Linear)
        return after or (is_activation and _is_batchnorm(before, layer) and is_absorbed(graph, before))
    return False


def _is_batchnorm(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, batchnorm._BatchNorm) or name_of(node, module) == "batchnorm"


def _size(x: Tensor) -> int:
    return x.numel() * x.itemsize
