"""The interpolations of θ_best and one candidate, one for each coefficient, at the target's sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpk import ops
from lpk.networks.flat import Flat
from lpk.tickets.ticket import Ticket

# Two networks are packed where at most this share of the weights is left in them, and at least this many coefficients
# are tried: elsewhere packing costs more time than it saves.
PACKED_SHARE = 0.5
PACKED_COEFFICIENTS = 4


Kept = Sequence[tuple[slice, int]]  # which part of a flat vector, and how many of its weights survive


def kept(target: Ticket, scope: str) -> Kept:
    """What a target's pruning keeps: so many of all weights as it has ("global"), or of each layer ("layer")."""
    if scope == "global":
        return [(slice(0, target.layout.n), target.keep)]
    spans = [entry.span for entry in target.layout.weights if entry.shape.numel()]
    return [(span, int(target.mask[span].count_nonzero())) for span in spans]


def kept_mask(weights: Tensor, parts: Kept) -> Tensor:
    """Which weights [n] survive: bool [n]."""
    return torch.cat([ops.magnitude_mask(weights[span], keep) for span, keep in parts])


class Interpolations:
    """MagnitudePruning(α·best + (1 − α)·other) for each coefficient α (Algorithm 2, line 5).

    What is not prunable stays as it is where both networks agree in it: α·x + (1 − α)·x may be the number beside x, and
    with it a frozen parameter another one, an index that a buffer holds the one before. Of +0 and −0 it is best's.

    Args:
        best, other: the networks, on one device.
        coefficients: the α.
        keep: how many weights survive, of the whole or of each of the parts that make it up; None: all, the
            interpolation is not pruned.
    """

    def __init__(self, best: Flat, other: Flat, coefficients: tuple[float, ...], keep: int | Kept | None) -> None:
        self.best, self.other = best, other
        self.coefficients = coefficients
        self._agreed = (best.rest == other.rest) | (best.rest.view(torch.int32) == other.rest.view(torch.int32))
        # Agreed entries are hidden: they may be infinite or NaN, which the kernels refuse.
        self._rests = best.rest.masked_fill(self._agreed, 0.0), other.rest.masked_fill(self._agreed, 0.0)
        if isinstance(keep, int):
            keep = [(slice(0, best.weights.numel()), keep)]
        a, b = best.weights, other.weights
        self.parts = None if keep is None else [_Part(a, b, coefficients, *part) for part in keep]

    def write(self, k: int, *, weights: Tensor, rest: Tensor) -> None:
        """Writes the k-th interpolation: the pruned weights [n], and the rest [m], which is never pruned."""
        alpha = self.coefficients[k]
        a, b = self._rests
        ops.interpolate(a, b, alpha, out=rest)
        torch.where(self._agreed, self.best.rest, rest, out=rest)
        if self.parts is None:
            ops.interpolate(self.best.weights, self.other.weights, alpha, out=weights)
        else:
            for part in self.parts:
                part.write(k, weights)


class _Part:
    """A part of the weights, which is pruned on its own, in all interpolations."""

    def __init__(self, a: Tensor, b: Tensor, coefficients: tuple[float, ...], span: slice, keep: int) -> None:
        self.a, self.b = a[span], b[span]
        self.coefficients, self.span, self.keep = coefficients, span, keep
        self.packed = self._packed()
        a, b = (self.a, self.b) if self.packed is None else (self.packed.a, self.packed.b)
        self.thresholds = list(zip(*ops.interpolate_threshold(a, b, coefficients, keep), strict=True))

    def write(self, k: int, weights: Tensor) -> None:
        """Writes this part of the k-th interpolation into the weights [n] of the whole."""
        alpha, threshold, out = self.coefficients[k], self.thresholds[k], weights[self.span]
        if self.packed is None:
            ops.interpolate_prune(self.a, self.b, alpha, self.keep, threshold=threshold, out=out)
        else:
            ops.interpolate_prune_packed(self.packed, alpha, self.keep, threshold=threshold, out=out)

    def _packed(self) -> ops.Packed | None:
        """Both networks without the weights that are zero in both, where they are on a CPU and sparse enough."""
        most = PACKED_SHARE * self.a.numel()
        few = len(self.coefficients) < PACKED_COEFFICIENTS
        if few or self.a.device.type != "cpu" or max(self.keep, int(self.b.count_nonzero())) > most:
            return None
        packed = ops.pack(self.a, self.b)
        return packed if self.keep <= packed.a.numel() <= most else None
