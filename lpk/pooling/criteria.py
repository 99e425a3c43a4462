"""What counts for and against a network on validation samples: its errors, its loss, and how sure it is."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

# Losses are summed as integers, in units of 2^-20: the sum does not depend on the order of the samples.
LOSS_UNITS = 2.0**20
LARGEST_LOSS = 1000.0  # what a NaN counts as, too


class Score(NamedTuple):
    """How a network did on all validation samples.

    Attributes:
        value: higher is better: the number of correct predictions, minus the loss in units, or what `evaluate` said.
        accuracy: the share of correct predictions, or what `evaluate` returned.
        margins: for each sample the logit of its label minus the largest other one, in the current order.
    """

    value: float
    accuracy: float
    margins: Tensor | None


def loss_units(logits: Tensor, labels: Tensor) -> int:
    """The cross-entropy of logits [N, classes], summed over the samples."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none").double()
    return int((loss.nan_to_num(nan=LARGEST_LOSS).clamp(max=LARGEST_LOSS) * LOSS_UNITS).round().sum())


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much each sample's own logit exceeds the largest other one, [N]; below 0 for an error."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(1)
