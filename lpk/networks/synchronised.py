"""BatchNorm over the whole batch that several processes train on, as one process computes it.

On GPUs that is PyTorch's own SyncBatchNorm, which has nothing for CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import batchnorms


def synchronised(model: nn.Module) -> nn.Module:
    """The network, whose BatchNorm layers share their batches' statistics with the other processes when they train.

    Parameters and buffers are the same objects under the same names. To be called before DistributedDataParallel.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for path, layer in list(batchnorms(model)):
        if not path:
            return SynchronisedBatchNorm.of(layer)
        model.set_submodule(path, SynchronisedBatchNorm.of(layer))
    return model


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm for inputs [B, C, ...] on a CPU, of which each process has some."""

    @classmethod
    def of(cls, layer: _BatchNorm) -> SynchronisedBatchNorm:
        """One that has the layer's parameters and buffers."""
        made = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        made.weight, made.bias, made.training = layer.weight, layer.bias, layer.training
        for name, buffer in layer.named_buffers():
            setattr(made, name, buffer)
        return made

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs inputs of at least 2 dimensions, not {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        count, mean, var = _statistics(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)  # unbiased, as BatchNorm keeps it
        output: Tensor = _Normalised.apply(input, self.weight, self.bias, count, mean, var, self.eps)
        return output


def _statistics(input: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many values a channel has in all processes, their mean and biased variance, of the same bits everywhere."""
    input = input.detach()
    var, mean = torch.var_mean(input, _others(input), correction=0)
    own = torch.cat([mean, var, mean.new_tensor([input.numel() // input.shape[1]])])
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, own)
    means, variances, counts = torch.stack(gathered).split([len(mean), len(var), 1], 1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return int(counts.sum()), mean, (shares * (variances + (means - mean).square())).sum(0)


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) · weight + bias, where mean and var are functions of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: int,
        mean: Tensor,
        var: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return nn.functional.batch_norm(input, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        shape = [1, -1, *[1] * (input.dim() - 2)]
        factor = (var + ctx.eps).rsqrt()
        standard = (input - mean.view(shape)) * factor.view(shape)
        of_bias = gradient.sum(_others(input))
        of_weight = (gradient * standard).sum(_others(input))
        sums = torch.stack([of_bias, of_weight])
        distributed.all_reduce(sums)  # each process's loss depends on all inputs, by mean and var
        sums /= ctx.count
        scale = factor if weight is None else factor * weight
        of_input = (gradient - sums[0].view(shape) - standard * sums[1].view(shape)) * scale.view(shape)
        own = (None, None) if weight is None else (of_weight, of_bias)
        return of_input, *own, None, None, None, None


def _others(input: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, input.dim())]
