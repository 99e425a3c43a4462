"""BatchNorm as a scale and a shift of each channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.sparse.steps import Affine, Convolve


def fold(step: Convolve | Affine) -> tuple[Tensor | None, Tensor | None]:
    """What stands for a step's bias and BatchNorm: the scale and the shift of each channel of its output, or None."""
    bias = step.layer.bias if isinstance(step, Convolve) else None
    bias = None if bias is None else bias.detach()
    if step.batchnorm is None:
        return None, bias
    batchnorm = step.batchnorm
    assert batchnorm.running_mean is not None and batchnorm.running_var is not None
    scale, shift = affine(batchnorm, batchnorm.running_mean.double(), batchnorm.running_var.double())
    return scale, shift if bias is None else torch.addcmul(shift, bias, scale)


def affine(batchnorm: _BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """BatchNorm with these statistics, in float64, as the scale and the shift of each channel."""
    scale = torch.rsqrt(variance + batchnorm.eps)
    if batchnorm.weight is not None:
        scale = scale * batchnorm.weight.detach()
    shift = -mean * scale
    if batchnorm.bias is not None:
        shift = shift + batchnorm.bias.detach()
    return scale.float(), shift.float()
