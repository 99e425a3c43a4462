"""The steps that a network is made of, and what passes between them: values on the engine, and PyTorch's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, fx

Pair = tuple[int, int]
Shape = tuple[int, ...]  # of one sample, as PyTorch sees it


@dataclass(eq=False)
class Value:
    """An activation on the engine, for each sample an image (channels, height, width). Features are channels of one
    pixel; tokens are pixels, of any height and width.

    `border`: the pixels around each image or patch that its readers need; `patches` and `patch`: how many an image is
    cut into, and their size; `outside`: what they hold outside the image. See lpk.sparse.blocks.Blocks.
    """

    image: tuple[int, int, int]
    border: int = 0
    patches: Pair = (1, 1)
    patch: Pair | None = None
    outside: float = 0.0

    @property
    def channels(self) -> int:
        return self.image[0]

    @property
    def pixels(self) -> int:
        return self.image[1] * self.image[2]


@dataclass(frozen=True)
class Seen:
    """How PyTorch sees a value: a tensor [times · B, *shape], whose rows are the samples' pixels in their order.

    last: the channels are its last dimension, and all before it are pixels, as of tokens [B, T, F] and of channels-last
    images [B, H, W, C]; else they are its second, [B, C, ...], and `times` is 1.
    """

    value: Value
    shape: Shape
    last: bool
    times: int = 1

    def of(self, value: Value) -> Seen:
        """Another value that is seen alike."""
        return Seen(value, self.shape, self.last, self.times)


@dataclass(eq=False)
class Slot:
    """Where a result of PyTorch lies during a call. result: what it is for BATCH samples, tensors without values."""

    name: str
    result: Any


class Normalisation(Protocol):
    """What BatchNorm layers have, and other scales and shifts of channels."""

    @property
    def running_mean(self) -> Tensor | None: ...
    @property
    def running_var(self) -> Tensor | None: ...
    @property
    def weight(self) -> Tensor | None: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def eps(self) -> float: ...


@dataclass(eq=False)
class PerChannel:
    """(x - mean) / √(var + eps) · weight + bias, each one number for a channel; None: left out."""

    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


@dataclass(eq=False)
class Layer:
    """A convolution or a linear layer: weight [filters, channels / groups, height, width] or [filters, channels].

    behind: the padding behind the image's end; `padding` is that before its start.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    behind: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def kernel(self) -> Pair:
        height, width = self.weight.shape[2:] or (1, 1)
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether each pixel is computed from itself alone."""
        ones, zeros = (1, 1), (0, 0)
        return self.kernel == ones and self.stride == ones and self.padding == self.behind == zeros


@dataclass(frozen=True)
class Activation:
    """One of lpk.sparse.kernels.ACTIVATIONS; slope: of "leaky relu", and the alpha of "elu"."""

    name: str = "identity"
    slope: float = 0.0

    @property
    def is_nonnegative(self) -> bool:
        return self.name in ("relu", "relu6", "sigmoid", "hardsigmoid")

    @property
    def keeps_zero(self) -> bool:
        return self.name not in ("sigmoid", "hardsigmoid")

    def __bool__(self) -> bool:
        return self.name != "identity"


IDENTITY = Activation()


@dataclass(eq=False)
class Step:
    """One operation of the engine, from values to a value. name: of what it computes, in the model."""

    inputs: list[Value]
    out: Value
    name: str = field(default="", kw_only=True)


@dataclass(eq=False)
class Convolve(Step):
    """A convolution or a linear layer, and what follows it: BatchNorm, the addition of a value, an activation."""

    layer: Layer
    batchnorm: Normalisation | None = None
    residual: Value | None = None
    activation: Activation = IDENTITY


@dataclass(eq=False)
class Affine(Step):
    """BatchNorm, addition or activation that stand for themselves."""

    batchnorm: Normalisation | None = None
    residual: Value | None = None
    activation: Activation = IDENTITY


@dataclass(eq=False)
class Multiply(Step):
    """The product of two values; the second may have one pixel, which all pixels of the first are multiplied with."""

    activation: Activation = IDENTITY


@dataclass(eq=False)
class LayerNorm(Step):
    """The channels of each pixel, normalised."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Heads:
    """Where the heads of queries, keys or values lie among a value's channels: number i of head h is channel
    first + h * head + i * step."""

    first: int
    head: int
    step: int


@dataclass(eq=False)
class Attention(Step):
    """softmax(scale · queries · keys) · values, the inputs, of `count` heads of `size` numbers each. Channel
    h * size + i of the output is number i of head h."""

    heads: tuple[Heads, Heads, Heads]
    count: int
    size: int
    scale: float

    @property
    def products(self) -> int:
        """Of one sample."""
        query, key, _ = self.inputs
        return 2 * self.count * self.size * query.pixels * key.pixels


@dataclass(eq=False)
class Concatenate(Step):
    """The channels of all inputs, one after the other."""


@dataclass(eq=False)
class Pick(Step):
    """Channels of the input, by their numbers."""

    channels: list[int]


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
    """The same activation, cut into other patches, or its pixels as an image of another height and width; with a
    stride, of every so many rows and columns the first."""

    stride: Pair = (1, 1)


@dataclass(eq=False)
class Pack:
    """A tensor of PyTorch's becomes a value."""

    slot: Slot
    seen: Seen
    name: str = ""

    @property
    def inputs(self) -> list[Value]:
        return []

    @property
    def out(self) -> Value:
        return self.seen.value


@dataclass(eq=False)
class Unpack:
    """A value becomes a tensor of PyTorch's; values: False: only its shape is read."""

    seen: Seen
    slot: Slot
    values: bool = True
    name: str = ""

    @property
    def inputs(self) -> list[Value]:
        return [self.seen.value] if self.values else []

    out = None


@dataclass(eq=False)
class Foreign:
    """A part of the model that PyTorch runs on ordinary tensors: it returns a list, for each slot that it writes.

    `counts`: whether it reads how many samples there are.
    """

    reads: list[Slot]
    writes: list[Slot]
    part: fx.GraphModule
    counts: bool
    name: str = ""

    @property
    def inputs(self) -> list[Value]:
        return []

    out = None


AnyStep = Step | Pack | Unpack | Foreign


def values_of(step: AnyStep) -> list[Value]:
    """What a step reads and writes on the engine."""
    return [*step.inputs, *([] if step.out is None else [step.out])]


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run, from slots to slots. `ending`: what makes of those, for a whole batch
    and in PyTorch, what the model returns; None where it returns the only one. `holds`: whether it does for batches of
    a size."""

    inputs: list[Slot]
    outputs: list[Slot]
    steps: list[AnyStep]
    ending: fx.GraphModule | None = None
    holds: Callable[[int], bool] = lambda size: True
    graph: fx.GraphModule | None = None  # that it was made of

    @property
    def foreign(self) -> list[Foreign]:
        return [step for step in self.steps if isinstance(step, Foreign)]

    @property
    def layers(self) -> list[Convolve]:
        return [step for step in self.steps if isinstance(step, Convolve)]

    @property
    def of_tokens(self) -> bool:
        """Whether most products are those of layers of tokens."""
        products = {step: step.layer.weight.numel() * step.out.pixels for step in self.layers}
        tokens = sum(n for step, n in products.items() if step.layer.is_pointwise and step.out.image[1] == 1)
        return 2 * tokens > sum(products.values()) and any(step.out.pixels > 1 for step in self.layers)

    @property
    def values(self) -> list[Value]:
        return [step.out for step in self.steps if step.out is not None]

    @property
    def in_pytorch(self) -> list[fx.GraphModule]:
        """The parts of the model that PyTorch runs."""
        return [step.part for step in self.foreign] + ([] if self.ending is None else [self.ending])
