"""A network on the engine: its plan, filters packed from the model's weights, and memory for activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpk.sparse import kernels
from lpk.sparse.kernels import Blocks
from lpk.sparse.plan import Affine, Convolve, Flatten, Foreign, Plan, Pool, Shape, Step, Value, pair, trace

# A layer of which more than this share of the weights remains is computed with all of them. Measured: see
# docs/performance.md.
DENSE_FROM = 0.4

# Images go through the network in groups whose activations fit into this many bytes of cache.
CACHE = 16 << 20


class Network:
    """Computes what a model in evaluation mode computes, for float32 samples of one shape, on a CPU.

    The values stay the model's: they are read at the first call, and again after `changed` was called.

    Args:
        model: float32, on the CPU.
        shape: of one sample, (channels, height, width) or (features,).

    Raises NotSupported where the model can't be traced.
    """

    name = "sparse"

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        self.plan: Plan = trace(model, shape)
        self._runs: dict[int, _Run] = {}
        self._folded: _Packed = {}  # with BatchNorm in them
        self._raw: _Packed = {}

    @property
    def whole(self) -> bool:
        """Whether no step runs in PyTorch, and there is a convolution."""
        layers = [step.layer for step in self.plan.steps if isinstance(step, Convolve)]
        foreign = any(isinstance(step, Foreign) for step in self.plan.steps)
        return not foreign and any(isinstance(layer, nn.Conv2d) for layer in layers)

    def changed(self) -> None:
        """To be called after the model's values changed: they are read again."""
        self._folded, self._raw = {}, {}

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's output for inputs [B, *shape]."""
        inputs = inputs.float()
        group = min(_group(self.plan), kernels.block_count(len(inputs)) * kernels.IMAGES)
        return torch.cat([self._run(len(part)).forward(part, self._folded) for part in inputs.split(group)])

    @torch.no_grad()
    def measure(self, inputs: Tensor) -> None:
        """Writes the statistics of one batch [B, *shape] into the model's BatchNorm layers, as training with momentum 1
        does: the mean and the unbiased variance of what each of them reads, the others before it normalising by theirs.
        """
        self._folded = {}
        self._run(len(inputs)).measure(inputs.float(), self._raw)

    def _run(self, batch: int) -> _Run:
        if batch not in self._runs:
            self._runs[batch] = _Run(self.plan, batch)
        return self._runs[batch]


class _Filters(NamedTuple):
    """A layer's packed weights, and the bias of each filter."""

    packed: kernels.SparseFilters | kernels.DenseFilters
    bias: Tensor | None


_Packed = dict[Step, _Filters]


def _pack(step: Convolve, x: Blocks, out: Blocks, *, folded: bool) -> _Filters:
    """Packs a layer for inputs with the strides of x; `folded`: with its BatchNorm."""
    layer, convolution = step.layer, _convolution(step.layer)
    weight = layer.weight.detach().view(convolution.weight_shape)
    scale, bias = _fold(step) if folded else (None, None if layer.bias is None else layer.bias.detach())
    remaining = int(weight.count_nonzero()) / weight.numel()
    if remaining <= DENSE_FROM or convolution.groups == convolution.channels > 1:
        return _Filters(kernels.pack_filters(weight, convolution, x, out, scale=scale), bias)
    return _Filters(kernels.pack_dense_filters(weight, convolution, x, scale=scale), bias)


def _convolution(layer: nn.Conv2d | nn.Linear) -> kernels.Convolution:
    """A linear layer is a convolution of one pixel."""
    if isinstance(layer, nn.Linear):
        return kernels.Convolution(layer.out_features, layer.in_features, (1, 1))
    return kernels.Convolution(
        layer.out_channels,
        layer.in_channels,
        kernel=pair(layer.kernel_size),
        stride=pair(layer.stride),
        padding=pair(layer.padding),
        dilation=pair(layer.dilation),
        groups=layer.groups,
    )


class _Run:
    """The plan for one number of images: a buffer for each value, shared by values that are not alive together."""

    def __init__(self, plan: Plan, batch: int) -> None:
        self.plan = plan
        self.batch = batch
        self.buffers = dict(_assign(plan, batch))

    def forward(self, inputs: Tensor, packed: _Packed) -> Tensor:
        self._pack_input(inputs)
        for step in self.plan.steps:
            if isinstance(step, Convolve):
                self._convolve(step, packed)
            else:
                self._other(step)
        return kernels.unpack_output(self.buffers[self.plan.output]).view(self.batch, *self.plan.output.shape)

    def measure(self, inputs: Tensor, packed: _Packed) -> None:
        self._pack_input(inputs)
        for step in self.plan.steps:
            if isinstance(step, Convolve) and step.batchnorm is not None:
                x, out = self.buffers[step.inputs[0]], self.buffers[step.out]
                filters = self._filters(step, packed, folded=False)
                self._normalise(step, kernels.convolution(filters.packed, x, out, bias=filters.bias))
            elif isinstance(step, Convolve):
                self._convolve(step, packed)
            elif isinstance(step, Affine) and step.batchnorm is not None:
                self._normalise(step, self.buffers[step.inputs[0]])
            else:
                self._other(step)

    def _pack_input(self, inputs: Tensor) -> None:
        out = self.buffers[self.plan.input]
        kernels.pack_input(inputs.reshape(len(inputs), *self.plan.input.image), out)

    def _filters(self, step: Convolve, packed: _Packed, *, folded: bool) -> _Filters:
        if step not in packed:
            packed[step] = _pack(step, self.buffers[step.inputs[0]], self.buffers[step.out], folded=folded)
        return packed[step]

    def _convolve(self, step: Convolve, packed: _Packed) -> None:
        filters = self._filters(step, packed, folded=True)
        kernels.convolution(
            filters.packed,
            self.buffers[step.inputs[0]],
            self.buffers[step.out],
            bias=filters.bias,
            residual=self._residual(step),
            activation=step.activation,
        )

    def _normalise(self, step: Convolve | Affine, x: Blocks) -> None:
        """BatchNorm by the statistics of x, which its layer is given."""
        batchnorm = step.batchnorm
        assert batchnorm is not None and batchnorm.running_mean is not None and batchnorm.running_var is not None
        mean, variance = kernels.channel_statistics(x)
        batchnorm.running_mean.copy_(mean)
        batchnorm.running_var.copy_(variance)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        scale, shift = _affine(batchnorm, mean, variance * ((count - 1) / count))
        self._scale_shift(step, x, scale, shift)

    def _scale_shift(self, step: Convolve | Affine, x: Blocks, scale: Tensor | None, shift: Tensor | None) -> None:
        kernels.scale_shift(
            x,
            self.buffers[step.out],
            scale=scale,
            shift=shift,
            residual=self._residual(step),
            activation=step.activation,
        )

    def _residual(self, step: Convolve | Affine) -> Blocks | None:
        return None if step.residual is None else self.buffers[step.residual]

    def _other(self, step: Step) -> None:
        x, out = self.buffers[step.inputs[0]] if step.inputs else None, self.buffers[step.out]
        if isinstance(step, Foreign):
            tensors = [kernels.unpack_output(self.buffers[v]).view(self.batch, *v.shape) for v in step.inputs]
            kernels.pack_input(step.run(*tensors).reshape(self.batch, *step.out.image), out)
            return
        assert x is not None
        if isinstance(step, Affine):
            scale = shift = None
            if step.batchnorm is not None:
                running = step.batchnorm.running_mean, step.batchnorm.running_var
                scale, shift = _affine(step.batchnorm, *(t.double() for t in running if t is not None))
            self._scale_shift(step, x, scale, shift)
        elif isinstance(step, Pool):
            pool: dict[str, Callable[..., Blocks]] = {
                "max": kernels.max_pool,
                "average": kernels.average_pool,
                "global average": kernels.global_average_pool,
            }
            pool[step.kind](x, out, **step.options)
        elif isinstance(step, Flatten):
            flat = Blocks(out.data.view(x.data.shape[0], *x.shape[1:], kernels.IMAGES), self.batch, 0)
            kernels.scale_shift(x, flat)
        else:
            raise AssertionError(step)


def _fold(step: Convolve) -> tuple[Tensor | None, Tensor | None]:
    """The scale of each filter and the bias that stand for a layer's bias and its BatchNorm."""
    bias = None if step.layer.bias is None else step.layer.bias.detach()
    if step.batchnorm is None:
        return None, bias
    batchnorm = step.batchnorm
    assert batchnorm.running_mean is not None and batchnorm.running_var is not None
    scale, shift = _affine(batchnorm, batchnorm.running_mean.double(), batchnorm.running_var.double())
    return scale, shift if bias is None else torch.addcmul(shift, bias, scale)


def _affine(batchnorm: nn.BatchNorm2d | nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm as the scale and the shift of each channel."""
    scale = torch.rsqrt(variance + batchnorm.eps)
    if batchnorm.weight is not None:
        scale = scale * batchnorm.weight.detach()
    shift = -mean * scale
    if batchnorm.bias is not None:
        shift = shift + batchnorm.bias.detach()
    return scale.float(), shift.float()


def _assign(plan: Plan, batch: int) -> Iterator[tuple[Value, Blocks]]:
    """A buffer for each value. One whose last reader has run is used again by a later value of the same shape: the
    border stays zero, since nothing writes there."""
    last = {value: i for i, step in enumerate(plan.steps) for value in step.inputs}
    free: dict[tuple[int, ...], list[Blocks]] = {}

    def buffer(value: Value) -> Blocks:
        key = (*value.image, value.border)
        return free[key].pop() if free.get(key) else kernels.empty_blocks(batch, *value.image, value.border)

    owned = {plan.input: buffer(plan.input)}
    yield plan.input, owned[plan.input]
    for i, step in enumerate(plan.steps):
        owned[step.out] = buffer(step.out)
        yield step.out, owned[step.out]
        for value in {*step.inputs, step.out} - {plan.output}:
            if last.get(value, i) == i and value in owned:
                free.setdefault((*value.image, value.border), []).append(owned.pop(value))


def _group(plan: Plan) -> int:
    """How many images go through the network together: whole blocks, whose two largest activations fit into CACHE."""
    sizes = sorted(c * (h + 2 * v.border) * (w + 2 * v.border) for v in _values(plan) for c, h, w in [v.image])
    block = 4 * kernels.IMAGES * sum(sizes[-2:])
    return kernels.IMAGES * max(2, min(16, CACHE // block))


def _values(plan: Plan) -> list[Value]:
    return [plan.input, *(step.out for step in plan.steps)]
