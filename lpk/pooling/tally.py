"""What a network does on validation samples, counted where it is computed: the host asks when it needs to know."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lpk.pooling.criteria import NOBODY, loss_units, margins


class Counts(NamedTuple):
    """Errors so far, and what they cost: as many, or the loss in its units."""

    errors: int
    cost: int


class Tally:
    """The counts of one network after another, over batches of one size.

    Args:
        samples: how many there are; of a batch that is padded those beyond them don't count.
        batch_size: the largest.
        criterion: "accuracy" or "loss".
    """

    def __init__(self, samples: int, batch_size: int, criterion: str, device: torch.device) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.criterion = criterion
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch_size, device=device)
        self._margins = torch.zeros(samples + batch_size, dtype=torch.float32, device=device)

    @property
    def state(self) -> list[Tensor]:
        """What `add` changes."""
        return [self._counts, self._at, self._margins]

    def clear(self) -> None:
        """Begins with another network."""
        self._counts.zero_()
        self._at.zero_()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits [B, classes], labels [B]; those of NOBODY are padding, and stand last."""
        wrong = (logits.argmax(1) != labels) & (labels != NOBODY)
        self._counts[0] += wrong.sum()
        if self.criterion == "loss":
            self._counts[1] += loss_units(logits, labels)
        self._margins.index_copy_(0, self._at + self._rows[: len(labels)], margins(logits, labels).float())
        self._at += len(labels)

    def read(self) -> Counts:
        """Waits for what was added."""
        errors, loss = self._counts.tolist()
        return Counts(errors, errors if self.criterion == "accuracy" else loss)

    def margins(self) -> Tensor:
        """Of all samples, in the order in which they came, see lpk.pooling.criteria."""
        return self._margins[: self.samples].clone()

    def harmless(self, cost: int, most: float) -> float:
        """How many more batches can be added before the cost, which is at least `cost` now, may exceed `most`."""
        if most == math.inf:
            return math.inf
        return (most - cost) // self.batch_size if self.criterion == "accuracy" else 0
