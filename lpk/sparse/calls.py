"""What the nodes of a graph call, in the engine's terms."""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from lpk.networks.plain import is_plain
from lpk.sparse.steps import Shape


class Call:
    """What a node of the graph calls, whether as a module, a function or a method."""

    def __init__(self, node: fx.Node, modules: dict[str, nn.Module]) -> None:
        self.node = node
        self.module = modules[str(node.target)] if node.op == "call_module" else None
        self.function: Any = None if self.module is not None else node.target
        self.source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None

    def argument(self, position: int, name: str, default: Any) -> Any:
        return self.node.args[position] if len(self.node.args) > position else self.node.kwargs.get(name, default)

    @property
    def other(self) -> fx.Node | None:
        other = self.argument(1, "other", None)
        return other if isinstance(other, fx.Node) and self.node.kwargs.get("alpha", 1) == 1 else None

    def activation(self) -> str | None:
        if is_plain(self.module, nn.ReLU6):
            return "relu6" if (self.module.min_val, self.module.max_val) == (0, 6) else None
        if self.function is F.relu6:
            return "relu6"
        known = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
        return "relu" if is_plain(self.module, nn.ReLU) or self.function in known else None

    def is_identity(self) -> bool:
        """In evaluation mode; F.dropout drops unless it is told not to."""
        if self.function is F.dropout:
            return not self.argument(2, "training", True)
        return is_plain(self.module, nn.Dropout, nn.Identity, nn.Dropout2d) or self.function == "contiguous"

    def is_add(self) -> bool:
        return self.function in (operator.add, operator.iadd, torch.add, "add", "add_")

    def is_view(self) -> bool:
        known = (torch.flatten, "flatten", torch.reshape, "reshape", "view")
        return is_plain(self.module, nn.Flatten) or self.function in known

    def pool(self, shape: Shape) -> tuple[str, dict[str, Any]] | None:
        """The kind of pooling and its options; None if it is none that the engine has."""
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
            return _adaptive(shape, module.output_size)
        if self.function is F.adaptive_avg_pool2d:
            return _adaptive(shape, self.argument(1, "output_size", None))
        return None

    def _window(self) -> dict[str, tuple[int, int]]:
        """What the functions for pooling begin with."""
        kernel = self.argument(1, "kernel_size", None)
        return _window(kernel, self.argument(2, "stride", None) or kernel, self.argument(3, "padding", 0))


def _adaptive(shape: Shape, size: Any) -> tuple[str, dict[str, Any]] | None:
    """Adaptive average pooling as an ordinary one, where the windows are all alike."""
    wanted = pair(size)
    if len(shape) != 3 or None in wanted:
        return None
    if wanted == (1, 1):
        return "global average", {}
    if any(n % m for n, m in zip(shape[1:], wanted, strict=True)):
        return None
    kernel = (shape[1] // wanted[0], shape[2] // wanted[1])
    return "average", {**_window(kernel, kernel, 0), "count_padding": True}


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, tuple[int, int]]:
    kernel = pair(kernel)
    return {"kernel": kernel, "stride": pair(stride) if stride is not None else kernel, "padding": pair(padding)}


def pair(size: Any) -> tuple[int, int]:
    a, b = size if isinstance(size, tuple | list) else (size, size)
    return a, b


def is_convolution(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the engine has it: padded with zeros, as many as numbers say."""
    return is_plain(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
