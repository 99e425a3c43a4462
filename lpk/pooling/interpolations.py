"""The interpolations of θ_best and one candidate, one for each coefficient, at the target's sparsity."""

from __future__ import annotations

import torch
from torch import Tensor

from lpk import ops
from lpk.networks.flat import Flat

# Two networks are packed where at most this share of the weights is left in them, and at least this many coefficients
# are tried: elsewhere packing costs more time than it saves.
PACKED_SHARE = 0.5
PACKED_COEFFICIENTS = 4


class Interpolations:
    """MagnitudePruning(α·best + (1 − α)·other) for each coefficient α (Algorithm 2, line 5).

    What is not prunable stays as it is where both networks agree in it: α·x + (1 − α)·x may be the number beside x, and
    with it a frozen parameter another one, an index that a buffer holds the one before. Of +0 and −0 it is best's.

    Args:
        best, other: the networks, on one device.
        coefficients: the α.
        keep: how many weights survive; None: all, the interpolation is not pruned.
    """

    def __init__(self, best: Flat, other: Flat, coefficients: tuple[float, ...], keep: int | None) -> None:
        self.best, self.other = best, other
        self.coefficients = coefficients
        self.keep = keep
        self._agreed = (best.rest == other.rest) | (best.rest.view(torch.int32) == other.rest.view(torch.int32))
        # Agreed entries are hidden: they may be infinite or NaN, which the kernels refuse.
        self._rests = best.rest.masked_fill(self._agreed, 0.0), other.rest.masked_fill(self._agreed, 0.0)
        self.packed: ops.Packed | None = None
        self.thresholds: list[tuple[Tensor, Tensor]] = []
        if keep is not None:
            self.packed = self._packed(keep)
            a, b = (best.weights, other.weights) if self.packed is None else (self.packed.a, self.packed.b)
            self.thresholds = list(zip(*ops.interpolate_threshold(a, b, coefficients, keep), strict=True))

    def write(self, k: int, *, weights: Tensor, rest: Tensor) -> None:
        """Writes the k-th interpolation: the pruned weights [n], and the rest [m], which is never pruned."""
        best, other, alpha = self.best, self.other, self.coefficients[k]
        a, b = self._rests
        ops.interpolate(a, b, alpha, out=rest)
        torch.where(self._agreed, best.rest, rest, out=rest)
        if self.keep is None:
            ops.interpolate(best.weights, other.weights, alpha, out=weights)
        elif self.packed is None:
            threshold = self.thresholds[k]
            ops.interpolate_prune(best.weights, other.weights, alpha, self.keep, threshold=threshold, out=weights)
        else:
            ops.interpolate_prune_packed(self.packed, alpha, self.keep, threshold=self.thresholds[k], out=weights)

    def _packed(self, keep: int) -> ops.Packed | None:
        """Both networks without the weights that are zero in both, where they are on a CPU and sparse enough."""
        a, b = self.best.weights, self.other.weights
        most = PACKED_SHARE * a.numel()
        few = len(self.coefficients) < PACKED_COEFFICIENTS
        if few or a.device.type != "cpu" or max(keep, int(b.count_nonzero())) > most:
            return None
        packed = ops.pack(a, b)
        return packed if keep <= packed.a.numel() <= most else None
