"""What a model is called with: the tensors among its arguments, and all else, which is part of its plan."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lpk.networks.tracing import Arguments


@dataclass(frozen=True)
class Kind:
    """A tensor argument: its dtype, and its shape without the batch's dimension, where it has that."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    batched: bool


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call, but for the values of tensors and the size of the batch.

    kinds: of the tensors, in their order. other: the arguments' types (2 is not 2.0), the arguments, with each tensor's
    place a Kind, and their structure; None for one tensor alone.
    """

    kinds: tuple[Kind, ...]
    other: tuple[tuple[type, ...], tuple[Any, ...], TreeSpec] | None = None

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Inputs:
        """float32 samples of this shape, [B, *shape]."""
        return cls((Kind(torch.float32, tuple(shape), True),))

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Inputs, list[Tensor]]:
        """Of a call with at least one tensor, and its tensors. The first tensor's first dimension is the batch, and so
        is that of each other which is as long."""
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        batch = next((len(x) for x in tensors if x.dim() > 0), -1)
        kinds = tuple(Kind(x.dtype, tuple(x.shape[b:]), bool(b)) for x in tensors for b in [_has(x, batch)])
        if len(leaves) == 1 == len(args) and args[0] is leaves[0]:
            return cls(kinds), tensors
        rest = iter(kinds)
        places = tuple(next(rest) if isinstance(x, Tensor) else x for x in leaves)
        return cls(kinds, (tuple(map(type, places)), places, structure)), tensors

    @property
    def batched(self) -> list[bool]:
        return [kind.batched for kind in self.kinds]

    @property
    def arguments(self) -> Arguments:
        """For a trace: the tensors' places are to be filled."""
        if self.other is None:
            return Arguments(1)
        return Arguments(len(self.kinds), self.fill)

    def fill(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with these for tensors."""
        if self.other is None:
            return (tensors[0],), {}
        _, leaves, structure = self.other
        rest = iter(tensors)
        args, kwargs = tree_unflatten([next(rest) if isinstance(x, Kind) else x for x in leaves], structure)
        return args, kwargs

    def call(self, model: nn.Module, tensors: Sequence[Any]) -> Any:
        args, kwargs = self.fill(tensors)
        return model(*args, **kwargs)

    def examples(self, batch: int, device: torch.device) -> list[Tensor]:
        """Zeros, which are numbers that an embedding has, too."""
        shapes = [(batch, *kind.shape) if kind.batched else kind.shape for kind in self.kinds]
        return [torch.zeros(s, dtype=k.dtype, device=device) for s, k in zip(shapes, self.kinds, strict=True)]

    def __str__(self) -> str:
        words = [
            f"{kind.shape}" if kind.dtype == torch.float32 else f"{kind.dtype} {kind.shape}" for kind in self.kinds
        ]
        return ", ".join(words)

    def __hash__(self) -> int:
        return hash(self.kinds)


def problem_of(model: nn.Module, inputs: Inputs, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a model can't be called with these arguments, or not by a plan, in words; None if it can."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        return f"{type(model).__name__}.forward: {error}"
    except ValueError:  # there is no signature
        pass
    kinds = [type(x) for x in (*args, *kwargs.values())] if inputs.other is None else inputs.other[0]
    if not inputs.kinds:
        found = ", ".join(sorted({kind.__name__ for kind in kinds})) or "nothing"
        return f"inputs are of type {found}; a tensor is needed"
    others = [kind for kind in kinds if inputs.other is not None and not issubclass(kind, FIXED)]
    return (
        f"an argument is of type {others[0].__name__}, which may change; {CONSTANTS} are possible" if others else None
    )


# What may be part of a plan: it stays what it is.
FIXED = (Kind, type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format)
CONSTANTS = "tensors, numbers, strings and None"


def _has(x: Tensor, batch: int) -> int:
    return int(x.dim() > 0 and len(x) == batch)
