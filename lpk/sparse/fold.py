"""BatchNorm as a scale and a shift of each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from lpk.sparse.steps import Affine, Convolve, Normalisation


def fold(step: Convolve | Affine) -> tuple[Tensor | None, Tensor | None]:
    """What stands for a step's bias and BatchNorm: the scale and the shift of each channel of its output, or None."""
    bias = step.layer.bias if isinstance(step, Convolve) else None
    bias = None if bias is None else bias.detach()
    if step.batchnorm is None:
        return None, bias
    found = step.batchnorm
    channels = step.out.channels
    mean = (
        torch.zeros(channels, dtype=torch.float64, device="cpu") if found.running_mean is None else found.running_mean
    )
    variance = torch.ones_like(mean) if found.running_var is None else found.running_var
    scale, shift = affine(found, mean.double(), variance.double())
    return scale, shift if bias is None else torch.addcmul(shift, bias, scale)


def affine(batchnorm: Normalisation, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm with these statistics, in float64, as the scale and the shift of each channel."""
    scale = torch.rsqrt(variance + batchnorm.eps)
    if batchnorm.weight is not None:
        scale = scale * batchnorm.weight.detach()
    shift = -mean * scale
    if batchnorm.bias is not None:
        shift = shift + batchnorm.bias.detach()
    return scale.float(), shift.float()
