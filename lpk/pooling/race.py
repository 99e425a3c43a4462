"""The order in which validation samples are asked, so that a network that can't win is given up after few of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lpk.pooling.samples import Validation


class Heat(NamedTuple):
    """The validation samples that stand first are a random draw.

    Attributes:
        drawn: how many there are; 0: none, nobody races.
        population: how many of the hardest samples they were drawn from.
        error: with what probability a network that makes no more errors than allowed may be dropped for them.
    """

    drawn: int = 0
    population: int = 0
    error: float = 0.0


class Race:
    """The order of the validation samples.

    Attributes:
        margins: what they are ordered by, [N], in their current order: see lpk.pooling.criteria.
    """

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self._places: Tensor | None = None  # where the samples stood at first; None: they still do
        self._generator = torch.Generator()  # of the heats' draws
        self.restart()

    def restart(self) -> None:
        """Forgets all that was asked so far: what comes is the same whatever came before."""
        if self._places is not None:
            self.validation.reorder(torch.argsort(self._places))
            self._places = None
        self.margins = torch.zeros(self.validation.count, dtype=torch.float32, device="cpu")
        self._heat = Heat()
        self._generator.manual_seed(0)

    def hardest_first(self, margins: Tensor) -> None:
        """Orders the validation samples by the margins of a network scored in full: its errors, and what it is least
        sure of, come first. A similar network then shows its errors early."""
        self.margins = margins
        self._reorder(torch.argsort(margins, stable=True))

    def draw_heat(self, errors_allowed: int, error: float) -> None:
        """Puts a batch first that is drawn at random from the hardest samples, twice as many as the errors allowed.

        `loses` then drops a network for its errors on this batch if a network that makes no more than the errors
        allowed, all of them among those hardest samples, would make as many with probability `error` at most: the tail
        of a hypergeometric distribution. One that makes fewer in all is dropped more rarely still. This is one heat of
        a race (Maron and Moore 1993), with the exact tail in place of Hoeffding's bound.
        """
        if self.validation.source is not None:
            return
        ranked = torch.argsort(self.margins, stable=True)
        population = min(2 * errors_allowed, self.validation.count)
        drawn = min(self.validation.batch_size, population)
        chosen = torch.randperm(population, generator=self._generator, device="cpu")[:drawn].to(ranked.device)
        behind = torch.ones(len(ranked), dtype=torch.bool, device=ranked.device)
        behind[chosen] = False
        self._reorder(torch.cat((ranked[chosen], ranked[behind])))
        self._heat = Heat(drawn, population, error)

    @property
    def runs(self) -> bool:
        """Whether the first batch is one that `loses` can tell by."""
        return self._heat.drawn >= self.validation.batch_size

    def loses(self, errors: int, errors_allowed: float) -> bool:
        """Whether a network that makes `errors` in the first batch is out of the race."""
        drawn, population, error = self._heat
        if not self.runs:
            return False
        return hypergeometric_tail(errors, population, int(min(errors_allowed, population)), drawn) <= error

    def _reorder(self, order: Tensor) -> None:
        self.validation.reorder(order)
        self._places = order if self._places is None else self._places[order]
        self.margins = self.margins[order]
        self._heat = Heat()


def hypergeometric_tail(least: int, population: int, marked: int, drawn: int) -> float:
    """The probability that of `drawn` ones among `population`, `marked` of which are marked, at least `least` are."""
    ways = range(max(least, 0, drawn - (population - marked)), min(drawn, marked) + 1)
    return sum(math.comb(marked, k) * math.comb(population - marked, drawn - k) for k in ways) / math.comb(
        population, drawn
    )
