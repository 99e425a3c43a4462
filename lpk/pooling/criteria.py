"""What counts for and against a network on validation samples: its errors, its loss, and how sure it is."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

# Losses are summed as integers, in units of 2^-20: the sum does not depend on the order of the samples.
LOSS_UNITS = 2.0**20
LARGEST_LOSS = 1000.0  # what a NaN counts as, too

NOBODY = -1  # the label of a row that fills a batch up and does not count


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


def loss_units(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of logits [N, classes], summed over the samples: an int64 scalar. NOBODY has none."""
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=NOBODY).double()
    return (loss.nan_to_num(nan=LARGEST_LOSS).clamp(max=LARGEST_LOSS) * LOSS_UNITS).round().sum().long()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much each sample's own logit exceeds the largest other one, [N]; below 0 for an error. NOBODY's means
    nothing."""
    own = labels.clamp(min=0).unsqueeze(1)
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -math.inf).amax(1)
