"""BatchNorm's statistics, measured on the engine while a batch passes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.batchnorm import check_batch
from lpk.sparse import kernels
from lpk.sparse.blocks import Blocks
from lpk.sparse.fold import affine
from lpk.sparse.runs import Run, joined
from lpk.sparse.steps import Affine, Convolve


def measure(run: Run, inputs: Tensor, names: Mapping[_BatchNorm, str]) -> dict[_BatchNorm, int]:
    """Writes the statistics of one batch into the BatchNorm layers of a run's plan; returns how often each is called.

    names: of the layers, for errors.
    """
    calls: dict[_BatchNorm, int] = {}
    run.slots = dict(zip(run.plan.inputs, [inputs], strict=True))
    for step in run.plan.steps:
        if isinstance(step, Convolve) and isinstance(step.batchnorm, _BatchNorm):
            x, out = run.buffers[step.inputs[0]], run.buffers[step.out]
            bias = None if step.layer.bias is None else step.layer.bias.detach()
            kernels.convolution(run.filters.of(step, run.buffers), x, out, bias=bias)
            _normalise(run, step, out, calls, names)
        elif isinstance(step, Affine) and isinstance(step.batchnorm, _BatchNorm):
            _normalise(run, step, run.buffers[step.inputs[0]], calls, names)
        else:
            for call in joined(run.of_step(step)):
                call()
    run.slots = {}
    return calls


def _normalise(
    run: Run, step: Convolve | Affine, x: Blocks, calls: dict[_BatchNorm, int], names: Mapping[_BatchNorm, str]
) -> None:
    """BatchNorm by the statistics of x, which its layer is given: the mean of all calls so far."""
    batchnorm = step.batchnorm
    assert (
        isinstance(batchnorm, _BatchNorm) and batchnorm.running_mean is not None and batchnorm.running_var is not None
    )
    count = x.shape[0] * x.shape[2] * x.shape[3]
    check_batch(names.get(batchnorm) or "BatchNorm", run.batch, count)
    mean, variance = kernels.channel_statistics(x)
    calls[batchnorm] = calls.get(batchnorm, 0) + 1
    for running, found in ((batchnorm.running_mean, mean), (batchnorm.running_var, variance)):
        running.copy_(found if calls[batchnorm] == 1 else running.to(found).lerp(found, 1 / calls[batchnorm]))
    scale, shift = affine(batchnorm, mean, variance * ((count - 1) / count))
    kernels.scale_shift(x, run.buffers[step.out], scale=scale, shift=shift, **run.ending(step))
