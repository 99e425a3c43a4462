"""How many weights each round keeps, in which layers, and which ones they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lpk import choices, ops
from lpk.networks.flat import Entry, Layout
from lpk.tickets.ticket import Ticket

FRACTION = 0.2  # the paper's


@dataclass(frozen=True)
class Sparsity:
    """What `lpk.imp` was asked to prune; its arguments of the same names say what each means.

    ValueError: a number out of range, both `fraction` and `density`, or fractions that are not one for each round.
    TypeError: a fraction that is no number.
    """

    rounds: int
    fraction: float | Sequence[float] | None = None
    density: float | None = None
    scope: str = "global"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}; 0 or more is possible")
        if self.density is not None and self.fraction is not None:
            raise ValueError(
                f"fraction is {self.fraction} and density is {self.density}; one of them is possible: what each round "
                "prunes, or what is left in the last"
            )
        choices.check("scope", self.scope, choices.SCOPES)
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"floor is {self.floor}; 0, or a density below 1, is possible")
        if self.density is None:
            object.__setattr__(self, "fraction", _fractions(self.fraction, self.rounds))
        elif not 0.0 < self.density < 1.0:
            raise ValueError(f"density is {self.density}; between 0 and 1 is possible")
        elif self.rounds == 0:
            raise ValueError(f"density is {self.density}, but rounds is 0, whose only ticket is dense")

    def settings(self) -> dict[str, Any]:
        """What tickets.json says of it, beside `rounds`."""
        density = None if self.density is None else float(self.density)
        return {"fraction": self.fraction, "density": density, "scope": self.scope, "floor": float(self.floor)}

    def keeps(self, layout: Layout) -> list[int]:
        """How many weights are left in each round, from round 0 on, which is dense.

        ValueError: `density` leaves none, or a round leaves less than `floor` asks for.
        """
        n = layout.n
        if self.density is None:
            keeps = [n]
            for fraction in per_round(self.fraction, self.rounds):
                keeps.append(keeps[-1] - round(fraction * keeps[-1]))
        else:
            keeps = [round(n * self.density ** (t / self.rounds)) for t in range(self.rounds + 1)]
            if not keeps[-1]:
                raise ValueError(f"density is {self.density}, which leaves none of {n} weights")
        least = sum(_least(self.floor, entry) for entry in layout.weights)
        if short := [t for t, keep in enumerate(keeps) if keep < least]:
            raise ValueError(
                f"floor is {self.floor}, for which {len(layout.weights)} layers keep {least} of {n} weights, but "
                f"{keeps[short[0]]} are left in round {short[0]}: a lower `floor`, or to prune less, is possible"
            )
        return keeps

    def next_mask(self, ticket: Ticket, keep: int) -> Tensor:
        """The mask of `keep` of a ticket's remaining weights, those of largest magnitude: bool [n].

        Of equal magnitudes the lower index survives. Pruned weights never return, even where a remaining weight is
        exactly 0, too.
        """
        weights, before = ticket.flat.weights, ticket.mask
        if self.scope == "global" and not self.floor:
            return _largest(weights, before, keep)
        mask = torch.zeros_like(before)
        for entry, count in zip(ticket.layout.weights, self._by_layer(ticket, keep), strict=True):
            mask[entry.span] = _largest(weights[entry.span], before[entry.span], count)
        return mask

    def _by_layer(self, ticket: Ticket, keep: int) -> list[int]:
        """How many weights each layer keeps.

        Layers that would fall below the floor keep as many as it says, which leaves fewer for the others, so that
        others may fall below it then.
        """
        entries, before = ticket.layout.weights, ticket.mask
        remaining = [int(before[entry.span].sum()) for entry in entries]
        least = [min(count, _least(self.floor, entry)) for count, entry in zip(remaining, entries, strict=True)]
        held: dict[int, int] = {}
        while True:
            left = keep - sum(held.values())
            if self.scope == "layer":
                counts = _shares([0 if i in held else count for i, count in enumerate(remaining)], left)
            else:
                among = before.clone()
                for i in held:
                    among[entries[i].span] = False
                kept = _largest(ticket.flat.weights, among, left)
                counts = [int(kept[entry.span].sum()) for entry in entries]
            below = [i for i, count in enumerate(counts) if i not in held and count < least[i]]
            if not below:
                return [held.get(i, count) for i, count in enumerate(counts)]
            held |= {i: least[i] for i in below}


def per_round(fraction: float | Sequence[float] | None, rounds: int) -> list[float]:
    """The fraction that each of so many rounds prunes; none where there is a density instead."""
    if fraction is None:
        return []
    return list(fraction) if isinstance(fraction, Sequence) else [fraction] * rounds


def _fractions(fraction: float | Sequence[float] | None, rounds: int) -> float | list[float]:
    """The argument as tickets.json has it."""
    try:
        if isinstance(fraction, Sequence):
            found: float | list[float] = [float(value) for value in fraction]
        else:
            found = float(FRACTION if fraction is None else fraction)
    except (TypeError, ValueError):
        raise TypeError(f"fraction is {fraction!r}; a number, or one for each round, is needed") from None
    if isinstance(found, list) and len(found) != rounds:
        raise ValueError(f"fraction is {fraction}; for {rounds} rounds as many numbers are needed")
    for value in per_round(found, 1):
        if not 0.0 < value < 1.0:
            raise ValueError(f"fraction is {fraction}; between 0 and 1 is possible")
    return found


def _least(floor: float, entry: Entry) -> int:
    """How many weights a layer keeps at the floor. The decimal as it was written: in binary 0.07 · 100 exceeds 7."""
    return math.ceil(Fraction(repr(float(floor))) * entry.shape.numel())


def _largest(weights: Tensor, among: Tensor, keep: int) -> Tensor:
    """The `keep` entries of largest magnitude among some: bool [n]."""
    mask = among.clone()
    mask[among] = ops.magnitude_mask(weights[among], keep)
    return mask


def _shares(counts: list[int], keep: int) -> list[int]:
    """The same share of each count, `keep` in all; what rounding leaves goes to the largest remainders."""
    total = sum(counts) or 1
    shares = [count * keep // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -(counts[i] * keep % total))
    for i in by_remainder[: keep - sum(shares)]:
        shares[i] += 1
    return shares
