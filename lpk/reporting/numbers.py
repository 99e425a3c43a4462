"""How a run is written: its methods, its scores in percent and their gains in points, or as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpk import page

PERCENT = "%"
DIGITS = 4  # of the largest score, where scores are plain numbers

NAMES = {
    "interpolation": "pool (interpolation)",
    "interpolation-loss": "pool (interpolation, by loss)",
    "average": "pool (average)",
    "average-loss": "pool (average, by loss)",
    "swa": "SWA",
    "ema": "EMA",
}


def name(method: str) -> str:
    """What a method's networks are called."""
    return NAMES.get(method, method)


@dataclass(frozen=True)
class Scale:
    """Of one run's results.

    Attributes:
        metric: what the scores are called.
        unit: "%": they are fractions.
        decimals: of plain numbers, the gains between them included.
    """

    metric: str
    unit: str
    decimals: int = 2

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Scale:
        """That of a results.json; an older one, which names no metric, has accuracies."""
        metric = results.get("metric", {"name": "accuracy", "unit": PERCENT})
        lines = [*results["rows"], results["mean"]]
        scores = [line["ticket"] for line in lines] + [p["accuracy"] for line in lines for p in line["pools"].values()]
        largest = max((abs(score) for score in scores if score), default=1.0)
        decimals = 2 if metric["unit"] == PERCENT else min(max(DIGITS - 1 - math.floor(math.log10(largest)), 0), 9)
        return cls(metric["name"], metric["unit"], decimals)

    @property
    def is_percent(self) -> bool:
        return self.unit == PERCENT

    @property
    def points(self) -> str:
        """The unit of a gain, to go on with after its number."""
        return " points" if self.is_percent else self.unit

    def score(self, value: float) -> str:
        return page.percent(value) if self.is_percent else f"{value:.{self.decimals}f}"

    def gain(self, value: float) -> str:
        """With its sign; what rounds to zero is +0, never -0."""
        return page.points(value) if self.is_percent else f"{round(value, self.decimals) + 0.0:+.{self.decimals}f}"

    def interval(self, gain: Mapping[str, float], between: str) -> str:
        return f"{self.gain(gain['low'])}{between}{self.gain(gain['high'])}"

    def plotted(self, value: float) -> float:
        return 100 * value if self.is_percent else value


def validation(score: float, unit: str) -> str:
    """A validation score with its unit, which is not always the test metric's: a pool may pick by another."""
    return f"{page.percent(score)}%" if unit == PERCENT else f"{score:.{DIGITS}g}{unit}"
