"""Which modules compute what their class in PyTorch does, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import CellType
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

M = TypeVar("M", bound=nn.Module)

TORCH = os.path.dirname(torch.__file__) + os.sep


def is_plain(module: nn.Module | None, *kinds: type[M]) -> TypeGuard[M]:
    """Whether a module is of one of these classes of PyTorch, not of a subclass, and does what they do in evaluation
    mode: nobody replaced its methods, or its tensors by others that don't fit its attributes, and it has no hooks.

    What is not plain must be called to know what it computes.
    """
    return (
        module is not None
        and type(module) in kinds
        and not is_patched(module)
        and all(map(_is_torchs, (type(module).forward, getattr(type(module), "_conv_forward", None))))
        and not (module._forward_hooks or module._forward_pre_hooks or module.training)
        and _tensors_fit(module)
    )


def is_patched(module: nn.Module) -> bool:
    """Whether some attribute of a module hides a method of its class, as `module.forward = ...` does."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


def reads_of_another(model: nn.Module, other: nn.Module) -> str | None:
    """The name of a method in a model that was replaced by one that reads a layer or a tensor of another model, which
    this one is a copy of: a function keeps what it refers to when it is copied. None if there is none."""
    theirs = {id(x) for module in other.modules() for x in (module, *module.parameters(False), *module.buffers(False))}
    theirs -= {id(x) for module in model.modules() for x in (module, *module.parameters(False), *module.buffers(False))}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if callable(getattr(type(module), name, None)) and any(id(x) in theirs for x in _references(value)):
                return f"{path}.{name}".lstrip(".")
    return None


def _references(function: Any, depth: int = 4) -> Iterator[Any]:
    """What a function, a bound method or a partial refers to by itself."""
    if depth == 0 or isinstance(function, nn.Module | Tensor):
        return
    cells = getattr(function, "__closure__", None) or ()
    parts = [
        getattr(function, "__self__", None),
        getattr(function, "__func__", None),
        getattr(function, "__wrapped__", None),
        getattr(function, "func", None),
        *(cell.cell_contents for cell in cells if cell != CellType()),
        *(getattr(function, "__defaults__", None) or ()),
        *(getattr(function, "__kwdefaults__", None) or {}).values(),
        *(getattr(function, "args", None) or ()),
        *(getattr(function, "keywords", None) or {}).values(),
    ]
    for part in parts:
        yield part
        yield from _references(part, depth - 1) if callable(part) else ()


def _is_torchs(method: Callable[..., Any] | None) -> bool:
    """Not one that was put into the class."""
    code = getattr(method, "__code__", None)
    return method is None or (code is not None and code.co_filename.startswith(TORCH))


def _tensors_fit(module: nn.Module) -> bool:
    """Whether a module's tensors are as its class makes them."""
    if isinstance(module, _ConvNd):
        channels = module.out_channels, module.in_channels // module.groups
        shapes = {"weight": (*channels, *module.kernel_size), "bias": channels[:1]}
    elif isinstance(module, nn.Linear):
        shapes = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    elif isinstance(module, _BatchNorm):
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    else:
        shapes = {}
    tensors = {name: getattr(module, name) for name in shapes}
    return all(
        tensor is None or (type(tensor) in (Tensor, nn.Parameter) and tuple(tensor.shape) == shapes[name])
        for name, tensor in tensors.items()
    )
