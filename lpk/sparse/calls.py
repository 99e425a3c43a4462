"""What the nodes of a graph call, in the engine's terms."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lpk.networks.plain import is_plain
from lpk.sparse.steps import Activation, Layer, Normalisation, Pair, PerChannel

FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.relu6,), "relu6"),
    **dict.fromkeys((F.silu,), "silu"),
    **dict.fromkeys((F.hardswish,), "hardswish"),
    **dict.fromkeys((F.hardsigmoid,), "hardsigmoid"),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"), "tanh"),
}
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
GELU = {"none": "gelu", "tanh": "gelu tanh"}
VIEWS = {
    *(
        torch.flatten,
        "flatten",
        torch.reshape,
        "reshape",
        "view",
        torch.permute,
        "permute",
        torch.transpose,
        "transpose",
    ),
    *(torch.swapaxes, "swapaxes", torch.movedim, "movedim", torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze"),
    *(torch.unflatten, "unflatten", "reshape_as", "view_as"),
}
SPLITS = (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind", torch.functional.split)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
MULTIPLICATIONS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
DIVISIONS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class Call:
    """What a node of the graph calls, whether as a module, a function or a method.

    constant: the parameter or buffer that a node is; None if it is none.
    """

    def __init__(
        self, node: fx.Node, modules: dict[str, nn.Module], constant: Callable[[fx.Node], Tensor | None]
    ) -> None:
        self.node = node
        self.constant = constant
        self.module = modules[str(node.target)] if node.op == "call_module" else None
        self.function: Any = None if self.module is not None else node.target
        self.source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None

    def argument(self, position: int, name: str, default: Any) -> Any:
        return self.node.args[position] if len(self.node.args) > position else self.node.kwargs.get(name, default)

    def tensor(self, position: int, name: str) -> Tensor | None:
        """An argument that is a parameter or buffer. Raises Unknown where it is something else."""
        found = self.argument(position, name, None)
        constant = self.constant(found) if isinstance(found, fx.Node) else None
        if found is not None and constant is None:
            raise Unknown
        return constant

    @property
    def other(self) -> Any:
        """What is added, or multiplied with."""
        return self.argument(1, "other", None) if self.node.kwargs.get("alpha", 1) == 1 else None

    def activation(self) -> Activation | None:
        module, function = self.module, self.function
        if is_plain(module, nn.ReLU6):
            return Activation("relu6") if (module.min_val, module.max_val) == (0, 6) else None
        if is_plain(module, nn.Hardtanh):
            return Activation("relu6") if (module.min_val, module.max_val) == (0, 6) else None
        if is_plain(module, nn.GELU):
            return Activation(GELU[module.approximate])
        if is_plain(module, nn.LeakyReLU):
            return Activation("leaky relu", module.negative_slope)
        if is_plain(module, nn.ELU):
            return Activation("elu", module.alpha)
        if module is not None:
            return Activation(MODULES[type(module)]) if is_plain(module, *MODULES) else None
        if function is F.gelu:
            return Activation(GELU[self.argument(1, "approximate", "none")])
        if function is F.leaky_relu:
            return Activation("leaky relu", self.argument(1, "negative_slope", 0.01))
        if function is F.elu:
            return Activation("elu", self.argument(1, "alpha", 1.0))
        return Activation(FUNCTIONS[function]) if _is_in(function, FUNCTIONS) else None

    def is_identity(self) -> bool:
        """In evaluation mode; F.dropout drops unless it is told not to."""
        if self.function is F.dropout:
            return not self.argument(2, "training", True)
        if getattr(self.function, "__name__", "") == "stochastic_depth":  # torchvision's
            return self.argument(3, "training", True) is False
        return is_plain(self.module, nn.Dropout, nn.Identity, nn.Dropout2d) or self.function == "contiguous"

    def is_add(self) -> bool:
        return _is_in(self.function, ADDITIONS)

    def is_multiply(self) -> bool:
        return _is_in(self.function, MULTIPLICATIONS)

    def is_subtract(self) -> bool:
        return _is_in(self.function, SUBTRACTIONS)

    def is_divide(self) -> bool:
        return _is_in(self.function, DIVISIONS) and self.node.kwargs.get("rounding_mode") is None

    def is_view(self) -> bool:
        return is_plain(self.module, nn.Flatten, nn.Unflatten) or _is_in(self.function, VIEWS)

    def is_part(self) -> bool:
        """One of several views, or all of them."""
        return self.function is operator.getitem or _is_in(self.function, SPLITS)

    def attention(self) -> tuple[list[fx.Node], float | None] | None:
        """Queries, keys and values, and what their products are multiplied with, where nothing is masked or dropped."""
        if self.function is not F.scaled_dot_product_attention:
            return None
        found = [self.argument(i, name, None) for i, name in enumerate(("query", "key", "value"))]
        nodes = [node for node in found if isinstance(node, fx.Node)]
        more = ((3, "attn_mask", None), (4, "dropout_p", 0), (5, "is_causal", False), (7, "enable_gqa", False))
        scale = self.argument(6, "scale", None)
        plain = len(nodes) == 3 and all(self.argument(*each) in (None, 0) for each in more)
        return (nodes, scale) if plain and isinstance(scale, int | float | None) else None

    def layer(self) -> Layer | None:
        """The convolution or linear layer; None if it is none that the engine has."""
        module = self.module
        if is_convolution(module):
            return convolution(
                module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
            )
        if is_plain(module, nn.Linear):
            return Layer(module.weight, module.bias)
        if self.function is F.conv2d:
            weight, bias = self.tensor(1, "weight"), self.tensor(2, "bias")
            stride, padding = self.argument(3, "stride", 1), self.argument(4, "padding", 0)
            dilation, groups = self.argument(5, "dilation", 1), self.argument(6, "groups", 1)
            return None if weight is None else convolution(weight, bias, stride, padding, dilation, groups)
        if self.function is F.linear:
            weight = self.tensor(1, "weight")
            return None if weight is None or weight.dim() != 2 else Layer(weight, self.tensor(2, "bias"))
        return None

    def padding(self) -> tuple[int, int, int, int] | None:
        """How many zeros are put around images: to the left, to the right, above and below."""
        pads = self.argument(1, "pad", None)
        zeros = self.argument(2, "mode", "constant") == "constant" and not self.argument(3, "value", None)
        if self.function is not F.pad or not zeros or not isinstance(pads, list | tuple) or len(pads) != 4:
            return None
        left, right, top, bottom = pads
        numbers = all(isinstance(n, int) and n >= 0 for n in pads)
        return (left, right, top, bottom) if numbers else None

    def batchnorm(self) -> Normalisation | None:
        """With statistics that are known."""
        module = self.module
        if is_plain(module, nn.BatchNorm2d, nn.BatchNorm1d) and module.running_mean is not None:
            return module
        if self.function is F.batch_norm and not self.argument(5, "training", False):
            mean, variance = self.tensor(1, "running_mean"), self.tensor(2, "running_var")
            weight, bias = self.tensor(3, "weight"), self.tensor(4, "bias")
            if mean is not None and variance is not None:
                return PerChannel(mean, variance, weight, bias, self.argument(7, "eps", 1e-5))
        return None

    def layer_norm(self) -> tuple[Tensor | None, Tensor | None, float] | None:
        """Of the last dimension: weight, bias, epsilon."""
        module = self.module
        if is_plain(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            return module.weight, module.bias, module.eps
        if self.function is F.layer_norm and len(self.argument(1, "normalized_shape", ())) == 1:
            return self.tensor(2, "weight"), self.tensor(3, "bias"), self.argument(4, "eps", 1e-5)
        return None

    def concatenated(self) -> tuple[list[fx.Node], int] | None:
        """The nodes, and the dimension."""
        tensors = self.argument(0, "tensors", None)
        if not _is_in(self.function, CONCATENATIONS) or not isinstance(tensors, list | tuple):
            return None
        nodes = [node for node in tensors if isinstance(node, fx.Node)]
        return (nodes, self.argument(1, "dim", 0)) if len(nodes) == len(tensors) else None

    def averaged(self) -> tuple[int, ...] | None:
        """The dimensions that a mean is taken over; None if it is no mean."""
        if self.function not in (torch.mean, "mean") or self.argument(3, "dtype", None) is not None:
            return None
        dims = self.argument(1, "dim", None)
        return (dims,) if isinstance(dims, int) else tuple(dims) if isinstance(dims, tuple | list) else None

    def pool(self, size: Pair) -> tuple[str, dict[str, Any]] | None:
        """The kind of pooling of images of this size and its options; None if it is none that the engine has."""
        module = self.module
        if is_plain(module, nn.MaxPool2d) and not module.return_indices:
            window = _window(module.kernel_size, module.stride, module.padding)
            return "max", window | {"dilation": pair(module.dilation)}
        if is_plain(module, nn.AvgPool2d) and module.divisor_override is None:
            window = _window(module.kernel_size, module.stride, module.padding)
            return "average", window | {"count_padding": module.count_include_pad}
        if self.function is F.max_pool2d and not self.argument(6, "return_indices", False):
            return "max", self._window() | {"dilation": pair(self.argument(4, "dilation", 1))}
        if self.function is F.avg_pool2d and self.argument(6, "divisor_override", None) is None:
            return "average", self._window() | {"count_padding": self.argument(5, "count_include_pad", True)}
        if is_plain(module, nn.AdaptiveAvgPool2d):
            return _adaptive(size, module.output_size)
        if self.function is F.adaptive_avg_pool2d:
            return _adaptive(size, self.argument(1, "output_size", None))
        return None

    def channels(self, dim: int, count: int) -> range | None:
        """Which channels, of so many in this dimension, are picked by an index; None if it is no such index."""
        index = self.argument(1, "index", None)
        index = index if isinstance(index, tuple) else (index,)
        if self.function is not operator.getitem or len(index) <= dim or Ellipsis in index:
            return None
        if not all(isinstance(i, slice) for i in index):
            return None
        whole = all(i == slice(None) for d, i in enumerate(index) if d != dim)
        chosen: slice = index[dim]
        numbers = all(isinstance(n, int | None) for n in (chosen.start, chosen.stop, chosen.step))
        return range(count)[chosen] if whole and numbers else None

    def _window(self) -> dict[str, Pair]:
        """What the functions for pooling begin with."""
        kernel = self.argument(1, "kernel_size", None)
        return _window(kernel, self.argument(2, "stride", None) or kernel, self.argument(3, "padding", 0))


class Unknown(Exception):
    """A call with arguments that the engine has no use for."""


def _is_in(function: Any, known: Any) -> bool:
    try:
        return function in known
    except TypeError:  # a function that can't be hashed
        return False


def _adaptive(pixels: Pair, size: Any) -> tuple[str, dict[str, Any]] | None:
    """Adaptive average pooling as an ordinary one, where the windows are all alike."""
    wanted = pair(size)
    if None in wanted:
        return None
    if wanted == (1, 1):
        return "global average", {}
    if any(n % m for n, m in zip(pixels, wanted, strict=True)):
        return None
    kernel = (pixels[0] // wanted[0], pixels[1] // wanted[1])
    return "average", {**_window(kernel, kernel, 0), "count_padding": True}


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, Pair]:
    kernel = pair(kernel)
    return {"kernel": kernel, "stride": pair(stride) if stride is not None else kernel, "padding": pair(padding)}


def pair(size: Any) -> Pair:
    a, b = size if isinstance(size, tuple | list) else (size, size)
    return a, b


def is_convolution(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the engine has it: padded with zeros."""
    return is_plain(module, nn.Conv2d) and module.padding_mode == "zeros"


def convolution(weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Layer:
    """A two-dimensional convolution with the arguments of torch.nn.functional.conv2d."""
    dilation = pair(dilation)
    if padding == "same":  # what is odd stands behind the image
        whole = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        before, behind = (whole[0] // 2, whole[1] // 2), (-(-whole[0] // 2), -(-whole[1] // 2))
    else:
        before = behind = (0, 0) if padding == "valid" else pair(padding)
    return Layer(weight, bias, pair(stride), before, behind, dilation, groups)
