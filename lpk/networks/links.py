"""Tensors of a model that have their place in memory, and are put back there after code that is not lpk's ran.

Such code converts a model (`model.bfloat16()`), gives a parameter other values (`parameter.data = …`), replaces
parameters and modules, adds hooks. Each makes a model read other memory than the one that lpk writes to.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Owner = tuple[dict[str, Any], str]  # the parameters or the buffers of a module, and a name among them


@dataclass(eq=False)
class Link:
    """A parameter or buffer, and the memory that it is to read.

    Attributes:
        name: of a state dict's entry, or of a buffer that is in none.
        home: a tensor of that memory.
        owners: where modules hold it.
    """

    name: str
    tensor: Tensor
    home: Tensor
    owners: list[Owner] = field(default_factory=list)

    @property
    def current(self) -> Tensor:
        """What the model has in its place; the tensor itself if nothing has its name any more."""
        held = [owner.get(key) for owner, key in self.owners]
        return next((other for other in held if other is not None and other is not self.tensor), self.tensor)

    def holds(self) -> bool:
        """Whether the model reads its home."""
        return _is_at(self.tensor, self.home) and all(owner.get(key) is self.tensor for owner, key in self.owners)

    def restore(self) -> None:
        """Makes the model read its home. Raises ValueError where that can't be had."""
        for owner, key in self.owners:
            owner[key] = self.tensor
        try:
            self.tensor.data = self.home
        except RuntimeError as error:
            raise ValueError(
                f"{self.name!r} of the candidate became another kind of tensor, which can't be undone ({error}); "
                "evaluate may do that to copy.deepcopy(candidate)"
            ) from error
        self.tensor.grad = None


def owners(model: nn.Module) -> dict[int, list[Owner]]:
    """Where modules hold each parameter and buffer, by its id."""
    found: dict[int, list[Owner]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).extend([(held, key)] if isinstance(held, dict) else [])
    return found


class Attributes:
    """What the modules of a model are and hold at this moment: attributes, parameters, submodules, hooks, modes."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, type(module), dict(vars(module)), [(v, v.copy()) for v in vars(module).values() if _is_held(v)])
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]

    def put_back(self) -> None:
        for module, kind, attributes, held in self._kept:
            if type(module) is not kind:  # a parametrization makes a class of its own
                module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in held:
                container.clear()
                container.update(content)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether a has the values of b, as far as its dtype holds them; also where that can't be compared."""
    if a.shape != b.shape:
        return False
    try:
        a, b = a.detach(), b.detach().to(a.device, a.dtype)
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    except (RuntimeError, TypeError):  # a quantized tensor, or one without values
        return True


def _is_at(tensor: Tensor, home: Tensor) -> bool:
    return (
        tensor.dtype == home.dtype
        and tensor.device == home.device
        and tensor.layout == home.layout
        and tensor.data_ptr() == home.data_ptr()
        and tensor.shape == home.shape
        and tensor.stride() == home.stride()
    )


def _is_held(value: object) -> bool:
    return type(value) in (dict, OrderedDict, set)
