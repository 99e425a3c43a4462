"""BatchNorm's running statistics, estimated from calibration samples until they have settled.

That is what torch.optim.swa_utils.update_bn does: only the BatchNorm layers train, the statistics of equal batches are
averaged with equal weight, the variance is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.flat_model import FlatModel

TOLERANCE = 0.02


class Statistics:
    """The running statistics of the network in `flat`.

    Args:
        tolerance: the standard error at which calibration stops, see `calibrate`; 0: it uses all batches.
    """

    def __init__(self, flat: FlatModel, tolerance: float) -> None:
        self.flat = flat
        self.tolerance = tolerance
        self._running = torch.nonzero(flat.statistics).squeeze(1)
        self._scale = _scales(flat)

    def calibrate(self, batches: Iterable[Tensor], measure: Callable[[Tensor], Mapping[_BatchNorm, int]]) -> None:
        """Estimates the statistics from calibration samples.

        Batch by batch, and no further once they have settled: from the second batch on, when the standard error of
        their mean over the batches, relative to the channel's standard deviation for a mean and to its variance for a
        variance, has a root mean square over all channels of at most `tolerance`. When that is depends on this network
        and the samples alone.

        Of a layer that a forward pass calls more than once (shared branches, heads) every call weighs the same, as in
        torch.optim.swa_utils.update_bn. A layer that none calls keeps its interpolated statistics: it has no others.

        Args:
            batches: inputs [B, ...], all of one size; no more are taken than needed.
            measure: writes the statistics of one batch into the layers, and returns how often each was called.

        Raises ValueError where a batch is too small for a variance.
        """
        flat = self.flat
        mean = squares = torch.zeros(len(self._running), dtype=torch.float64, device=flat.rest.device)  # West 1979
        total = torch.zeros_like(mean)
        with torch.inference_mode():
            for count, inputs in enumerate(batches, start=1):
                before = flat.rest[self._running]
                calls = measure(inputs)
                flat.read()
                batch = flat.rest[self._running]
                weight = self._weights(calls, batch != before)
                total = total + weight
                difference = batch.double() - mean
                mean = mean + difference * weight / total.clamp(min=1)
                squares = squares + weight * difference * (batch - mean)
                deviation = squares / total.clamp(min=1)
                if count > 1 and self.tolerance and self._error(mean, deviation, count) <= self.tolerance:
                    break
            flat.rest[self._running] = torch.where(total > 0, mean.to(flat.rest.dtype), flat.rest[self._running])

    def _weights(self, calls: Mapping[_BatchNorm, int], changed: Tensor) -> Tensor:
        """How often each statistic was taken from a batch: as often as its layer was called, or once where a model
        computes with the statistics of a layer without calling it."""
        counts = [calls.get(layer, 0) for layer, _, _ in self.flat.batchnorms]
        if all(count == 1 for count in counts):
            return torch.ones_like(changed, dtype=torch.float64)
        counted = torch.tensor(counts, dtype=torch.float64, device=changed.device)[self._scale.layer]
        return torch.where(counted > 0, counted, changed.double())

    def _error(self, mean: Tensor, deviation: Tensor, count: int) -> float:
        """The standard error of the statistics' mean over `count` batches, relative, as calibrate says; deviation: the
        mean square difference from it."""
        variance = mean[self._scale.variance]
        scale = torch.where(self._scale.is_mean, variance, variance.square())
        relative = deviation / (count - 1) / scale
        return math.sqrt(float(torch.where(scale > 0, relative, 0.0).mean()))  # a dead channel has settled


class _Scales(NamedTuple):
    """For each running statistic whether it is a mean, which one is the variance of the same channel, and the number of
    its layer."""

    is_mean: Tensor
    variance: Tensor
    layer: Tensor


def _scales(flat: FlatModel) -> _Scales:
    position = (torch.cumsum(flat.statistics, 0) - 1).cpu()  # in the vector of statistics alone
    variance = torch.zeros(int(flat.statistics.sum()), dtype=torch.int64, device="cpu")
    is_mean, layer = torch.zeros_like(variance, dtype=torch.bool), torch.zeros_like(variance)
    for number, (_, mean, of_same) in enumerate(flat.batchnorms):
        is_mean[position[mean]] = True
        for span in (mean, of_same):
            variance[position[span]] = position[of_same]
            layer[position[span]] = number
    return _Scales(*(tensor.to(flat.rest.device) for tensor in (is_mean, variance, layer)))
