"""Weights that are not zero and change nothing: their input is always zero, or nobody reads what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lpk.sparse.fold import fold
from lpk.sparse.steps import Affine, Convolve, Flatten, Plan, Pool, Relayout, Value

Channels = dict[Value, Tensor]  # of each value, bool [channels]
Windows = dict[Convolve, Tensor]  # of each layer, bool [filters, channels of a group]: those that are not all zero


def live_windows(plan: Plan, read: Callable[[Tensor], Tensor] = Tensor.detach) -> Windows:
    """Without the dead ones: the output is the same for all finite inputs, at the images' borders as elsewhere.

    read: the values of a layer's weight.
    """
    layers = [step for step in plan.steps if isinstance(step, Convolve)]
    windows = {step: _of_weight(read(step.layer.weight)) for step in layers}
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
    zero = {plan.input: torch.zeros(plan.input.image[0], dtype=torch.bool, device="cpu")}
    for step in plan.steps:
        if isinstance(step, Convolve | Affine):
            x = zero[step.inputs[0]]
            sums = ~_without(step, windows[step], x).any(1) if isinstance(step, Convolve) else x
            _, shift = fold(step)
            shift = torch.zeros(len(sums), dtype=torch.float32, device="cpu") if shift is None else shift
            if step.residual is not None:
                zero[step.out] = sums & (shift == 0) & zero[step.residual]
            else:
                zero[step.out] = sums & ((shift == 0) if step.activation == "identity" else (shift <= 0))
        elif isinstance(step, Pool | Relayout):
            zero[step.out] = zero[step.inputs[0]]
        elif isinstance(step, Flatten):
            x = zero[step.inputs[0]]
            zero[step.out] = x.repeat_interleave(step.out.image[0] // len(x))
        else:
            zero[step.out] = torch.zeros(step.out.image[0], dtype=torch.bool, device="cpu")
    return zero


def _read_channels(plan: Plan, windows: Windows) -> Channels:
    """The channels that some weight reads, of a filter that is read itself."""
    values = [plan.input, *(step.out for step in plan.steps)]
    read = {value: torch.zeros(value.image[0], dtype=torch.bool, device="cpu") for value in values}
    for value in plan.outputs:
        read[value][:] = True
    for step in reversed(plan.steps):
        out = read[step.out]
        if isinstance(step, Convolve):
            used = windows[step] & out[:, None]
            read[step.inputs[0]] |= used.view(_groups(step), -1, used.shape[1]).any(1).flatten()
            for value in step.inputs[1:]:
                read[value] |= out
        elif isinstance(step, Affine | Pool | Relayout):
            for value in step.inputs:
                read[value] |= out
        elif isinstance(step, Flatten):
            read[step.inputs[0]] |= out.view(len(read[step.inputs[0]]), -1).any(1)
        else:
            for value in step.inputs:
                read[value][:] = True
    return read


def _without(step: Convolve, windows: Tensor, channels: Tensor) -> Tensor:
    """A layer's windows but those of these input channels."""
    groups = _groups(step)
    of_filters = channels.view(groups, 1, -1).expand(groups, len(windows) // groups, -1).reshape(windows.shape)
    return windows & ~of_filters


def _groups(step: Convolve) -> int:
    return step.layer.groups if isinstance(step.layer, nn.Conv2d) else 1
