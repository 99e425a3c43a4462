"""Weights that are not zero and change nothing: their input is always zero, or nobody reads what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpk.sparse.fold import fold
from lpk.sparse.steps import (
    Affine,
    Concatenate,
    Convolve,
    Flatten,
    Multiply,
    Pick,
    Plan,
    Pool,
    Relayout,
    Step,
    Value,
)

Channels = dict[Value, Tensor]  # of each value, bool [channels]
Windows = dict[Convolve, Tensor]  # of each layer, bool [filters, channels of a group]: those that are not all zero


def live_windows(plan: Plan, read: Callable[[Tensor], Tensor] = Tensor.detach) -> Windows:
    """Without the dead ones: the output is the same for all finite inputs, at the images' borders as elsewhere.

    read: the values of a layer's weight.
    """
    windows = {step: _of_weight(read(step.layer.weight)) for step in plan.layers}
    zero = _zero_channels(plan, windows)
    windows = {step: _without(step, window, zero[step.inputs[0]]) for step, window in windows.items()}
    wanted = _read_channels(plan, windows)
    return {step: window & wanted[step.out][:, None] for step, window in windows.items()}


def without_dead(weight: Tensor, windows: Tensor) -> Tensor:
    """A layer's weight, of which these windows are alive."""
    return weight.masked_fill(~windows.view(*windows.shape, *[1] * (weight.dim() - 2)), 0)


def _of_weight(weight: Tensor) -> Tensor:
    return (weight != 0).view(*weight.shape[:2], -1).any(2)


def _zero_channels(plan: Plan, windows: Windows) -> Channels:
    """The channels that are zero for every input: filters without weights, if what follows them makes zero of it."""
    zero: Channels = {}
    for step in plan.steps:
        if step.out is not None:
            zero[step.out] = _zero(step, windows, zero) if isinstance(step, Step) else _none(step.out)
    return zero


def _zero(step: Step, windows: Windows, zero: Channels) -> Tensor:
    """Of a step's output."""
    x = zero[step.inputs[0]]
    if isinstance(step, Convolve | Affine):
        sums = ~_without(step, windows[step], x).any(1) if isinstance(step, Convolve) else x
        _, shift = fold(step)
        shift = torch.zeros(len(sums), dtype=torch.float32, device="cpu") if shift is None else shift
        if not step.activation.keeps_zero:
            return _none(step.out)
        if step.residual is not None:
            return sums & (shift == 0) & zero[step.residual]
        return sums & ((shift <= 0) if step.activation.name in ("relu", "relu6") else (shift == 0))
    if isinstance(step, Multiply):
        return x | zero[step.inputs[1]] if step.activation.keeps_zero else _none(step.out)
    if isinstance(step, Pool | Relayout):
        return x
    if isinstance(step, Flatten):
        return x.repeat_interleave(step.out.channels // len(x))
    if isinstance(step, Concatenate):
        return torch.cat([zero[value] for value in step.inputs])
    return x[step.channels] if isinstance(step, Pick) else _none(step.out)


def _none(value: Value) -> Tensor:
    return torch.zeros(value.channels, dtype=torch.bool, device="cpu")


def _read_channels(plan: Plan, windows: Windows) -> Channels:
    """The channels that some weight reads, of a filter that is read itself."""
    read = {value: _none(value) for value in plan.values}
    for step in reversed(plan.steps):
        if not isinstance(step, Step):
            for value in step.inputs:
                read[value][:] = True
            continue
        out = read[step.out]
        if isinstance(step, Convolve):
            used = windows[step] & out[:, None]
            read[step.inputs[0]] |= used.view(step.layer.groups, -1, used.shape[1]).any(1).flatten()
            for value in step.inputs[1:]:
                read[value] |= out
        elif isinstance(step, Affine | Multiply | Pool | Relayout):
            for value in step.inputs:
                read[value] |= out
        elif isinstance(step, Flatten):
            read[step.inputs[0]] |= out.view(len(read[step.inputs[0]]), -1).any(1)
        elif isinstance(step, Concatenate):
            for value, part in zip(step.inputs, out.split([v.channels for v in step.inputs]), strict=True):
                read[value] |= part
        elif isinstance(step, Pick):
            read[step.inputs[0]][torch.tensor(step.channels)[out]] = True
        else:
            for value in step.inputs:
                read[value][:] = True
    return read


def _without(step: Convolve, windows: Tensor, channels: Tensor) -> Tensor:
    """A layer's windows but those of these input channels."""
    groups = step.layer.groups
    of_filters = channels.view(groups, 1, -1).expand(groups, len(windows) // groups, -1).reshape(windows.shape)
    return windows & ~of_filters
