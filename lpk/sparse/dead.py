"""Weights that are not zero and change nothing: their input is always zero, or nobody reads what they compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpk.sparse.fold import fold
from lpk.sparse.plan import Affine, Convolve, Flatten, Plan, Pool, Relayout, Value

Channels = dict[Value, Tensor]  # of each value, bool [channels]


def live_weights(plan: Plan) -> dict[Convolve, Tensor]:
    """The weights of each convolution and linear layer, as shaped as the layer's, the dead ones zero.

    The network's output stays the same for all finite inputs, at the images' borders as elsewhere.
    """
    zero = _zero_channels(plan)
    layers = [step for step in plan.steps if isinstance(step, Convolve)]
    weights = {step: _without(step, zero[step.inputs[0]]) for step in layers}
    read = _read_channels(plan, weights)
    for step, weight in weights.items():
        weight[~read[step.out]] = 0
    return weights


def _zero_channels(plan: Plan) -> Channels:
    """The channels that are zero for every input: filters without weights, if what follows them makes zero of it."""
    zero = {plan.input: torch.zeros(plan.input.image[0], dtype=torch.bool)}
    for step in plan.steps:
        if isinstance(step, Convolve | Affine):
            x = zero[step.inputs[0]]
            sums = (_without(step, x) == 0).flatten(1).all(1) if isinstance(step, Convolve) else x
            _, shift = fold(step)
            shift = torch.zeros(len(sums)) if shift is None else shift
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
            zero[step.out] = torch.zeros(step.out.image[0], dtype=torch.bool)
    return zero


def _read_channels(plan: Plan, weights: dict[Convolve, Tensor]) -> Channels:
    """The channels that some weight reads, of a filter that is read itself."""
    values = [plan.input, *(step.out for step in plan.steps)]
    read = {value: torch.zeros(value.image[0], dtype=torch.bool) for value in values}
    read[plan.output][:] = True
    for step in reversed(plan.steps):
        out = read[step.out]
        if isinstance(step, Convolve):
            weight = weights[step]
            used = (weight != 0).view(*weight.shape[:2], -1).any(2) & out[:, None]
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


def _without(step: Convolve, channels: Tensor) -> Tensor:
    """A layer's weights, a copy, those of these input channels zero."""
    weight, groups = step.layer.weight.detach(), _groups(step)
    of_filters = channels.view(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(*weight.shape[:2])
    return weight.masked_fill(of_filters.view(*weight.shape[:2], *[1] * (weight.dim() - 2)), 0)


def _groups(step: Convolve) -> int:
    return step.layer.groups if isinstance(step.layer, nn.Conv2d) else 1
