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
        size, device = len(self._running), flat.rest.device
        # Over the batches so far, by West (1979): the mean, the summed squares of the distance from it, the weight, how
        # many there are, and the squared standard error.
        self._mean, self._squares, self._total = torch.zeros(3, size, dtype=torch.float64, device=device)
        self._count, self._error = torch.zeros(2, dtype=torch.float64, device=device)
        self._counted: dict[tuple[int, ...], Tensor] = {}

    @property
    def state(self) -> list[Tensor]:
        """What `add` changes."""
        return [self._mean, self._squares, self._total, self._count, self._error, self.flat.rest]

    def calibrate(self, batches: Iterable[Tensor], add: Callable[[Tensor], None]) -> None:
        """Estimates the statistics from calibration samples.

        Batch by batch, and no further once they have settled: from the second batch on, when the standard error of
        their mean over the batches, relative to the channel's standard deviation for a mean and to its variance for a
        variance, has a root mean square over all channels of at most `tolerance`. When that is depends on this network
        and the samples alone.

        Of a layer that a forward pass calls more than once (shared branches, heads) every call weighs the same, as in
        torch.optim.swa_utils.update_bn. A layer that none calls keeps its interpolated statistics: it has no others.

        Args:
            batches: inputs [B, ...], all of one size; no more are taken than needed.
            add: does what `add` does.

        Raises ValueError where a batch is too small for a variance.
        """
        flat = self.flat
        for x in (self._mean, self._squares, self._total, self._count):
            x.zero_()
        with torch.inference_mode():
            for count, inputs in enumerate(batches, start=1):
                add(inputs)
                if count > 1 and self.tolerance and math.sqrt(float(self._error)) <= self.tolerance:
                    break
            mean = self._mean.to(flat.rest.dtype)
            flat.rest[self._running] = torch.where(self._total > 0, mean, flat.rest[self._running])

    def add(self, inputs: Tensor, measure: Callable[[Tensor], Mapping[_BatchNorm, int]]) -> None:
        """One batch's part. The host waits for nothing.

        measure: writes the statistics of one batch into the layers, and returns how often each was called.
        """
        flat = self.flat
        before = flat.rest[self._running]
        calls = measure(inputs)
        flat.read()
        batch = flat.rest[self._running]
        weight = self._weights(calls, batch != before)
        self._total += weight
        difference = batch.double() - self._mean
        self._mean += difference * weight / self._total.clamp(min=1)
        self._squares += weight * difference * (batch - self._mean)
        self._count += 1
        if self.tolerance:
            self._error.copy_(self._squared_error())

    def _weights(self, calls: Mapping[_BatchNorm, int], changed: Tensor) -> Tensor:
        """How often each statistic was taken from a batch: as often as its layer was called, or once where a model
        computes with the statistics of a layer without calling it."""
        counts = tuple(calls.get(layer, 0) for layer, _, _ in self.flat.batchnorms)
        if all(count == 1 for count in counts):
            return torch.ones_like(changed, dtype=torch.float64)
        if counts not in self._counted:
            counted = torch.tensor(counts, dtype=torch.float64, device=changed.device)
            self._counted[counts] = counted[self._scale.layer]
        return torch.where(self._counted[counts] > 0, self._counted[counts], changed.double())

    def _squared_error(self) -> Tensor:
        """The standard error of the statistics' mean over the batches, relative, as calibrate says, squared."""
        variance = self._mean[self._scale.variance]
        scale = torch.where(self._scale.is_mean, variance, variance.square())
        deviation = self._squares / self._total.clamp(min=1)  # the mean square difference from the mean
        relative = deviation / (self._count - 1) / scale
        return torch.where(scale > 0, relative, 0.0).mean()  # a dead channel has settled


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
