"""What a pool can be asked for: methods, searches, criteria, statistics, coefficients. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

EMA_DECAY = 0.95  # the paper's; it does not say whether θ_best or the newcomer has this weight


@dataclass(frozen=True)
class Method:
    """How a pool is made.

    Attributes:
        greedy: whether a candidate has to be at least as good to be accepted; otherwise every one is taken, unscored.
        coefficients: (the given coefficients, how many networks are averaged already) -> those to try in this step.
    """

    greedy: bool
    coefficients: Callable[[tuple[float, ...], int], tuple[float, ...]]


METHODS = {
    "interpolation": Method(greedy=True, coefficients=lambda given, averaged: given),  # Algorithm 2
    "average": Method(greedy=True, coefficients=lambda given, averaged: (0.5,)),  # Algorithm 3
    "swa": Method(greedy=False, coefficients=lambda given, averaged: (averaged / (averaged + 1),)),
    "ema": Method(greedy=False, coefficients=lambda given, averaged: (EMA_DECAY,)),
    "ema-newcomer": Method(greedy=False, coefficients=lambda given, averaged: (1 - EMA_DECAY,)),
}
SEARCHES = ("bounded", "exhaustive", "racing")
PRUNE = ("during", "after")
BACKENDS = ("auto", "torch", "graph", "sparse")
CRITERIA = ("accuracy", "loss")
AUTOCASTS = ("bfloat16", "float16")
STATISTICS = ("recalibrate", "interpolate", "leave")
