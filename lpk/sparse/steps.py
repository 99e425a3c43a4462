"""The steps that a network is made of on the engine, and the values that they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Shape = tuple[int, ...]  # of one sample: (channels, height, width), or (features,)


@dataclass(eq=False)
class Value:
    """An activation. `border`: the pixels around each image or patch that its readers need; `patches` and `patch`: how
    many an image is cut into, and their size, see lpk.sparse.blocks.Blocks."""

    shape: Shape
    border: int = 0
    patches: tuple[int, int] = (1, 1)
    patch: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width); features are channels of one pixel."""
        channels, *size = self.shape
        height, width = size or (1, 1)
        return channels, height, width


@dataclass(eq=False)
class Step:
    """One operation of the engine, from values to a value."""

    inputs: list[Value]
    out: Value


@dataclass(eq=False)
class Convolve(Step):
    """A convolution or a linear layer, and what follows it: BatchNorm, the addition of a value, an activation."""

    layer: nn.Conv2d | nn.Linear
    batchnorm: _BatchNorm | None = None
    residual: Value | None = None
    activation: str = "identity"


@dataclass(eq=False)
class Affine(Step):
    """BatchNorm, addition or activation that stand for themselves."""

    batchnorm: _BatchNorm | None = None
    residual: Value | None = None
    activation: str = "identity"


@dataclass(eq=False)
class Pool(Step):
    """kind: "max", "average" or "global average"; options as of torch.nn.functional's function."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Flatten(Step):
    """[channels, height, width] as [channels · height · width]."""


@dataclass(eq=False)
class Relayout(Step):
    """The same activation, cut into other patches."""


@dataclass(eq=False)
class Foreign(Step):
    """What the engine doesn't know: PyTorch runs that part of the model on ordinary tensors.

    `counts`: whether it reads how many samples there are.
    """

    part: fx.GraphModule = field(kw_only=True)
    counts: bool = field(kw_only=True)


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run, from a value to values. `ending`: what makes of those, for a whole
    batch and in PyTorch, what the model returns; None where it returns the only one. `holds`: whether it does
    for batches of a size."""

    input: Value
    outputs: list[Value]
    steps: list[Step]
    ending: fx.GraphModule | None = None
    holds: Callable[[int], bool] = lambda size: True

    @property
    def foreign(self) -> list[Foreign]:
        return [step for step in self.steps if isinstance(step, Foreign)]

    @property
    def in_pytorch(self) -> list[fx.GraphModule]:
        """The parts of the model that PyTorch runs."""
        return [step.part for step in self.foreign] + ([] if self.ending is None else [self.ending])
