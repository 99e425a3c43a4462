"""Which network to ship, in words: chosen by lpk.reporting.choice on validation samples, reported on test samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lpk import page
from lpk.reporting import choice
from lpk.reporting.choice import TICKET, Candidate, Choice
from lpk.reporting.numbers import PERCENT, Scale, name, validation

Results = Mapping[str, Any]


def sentence(results: Results) -> str:
    """The recommendation, its reason and how sure it is; "" where nothing was validated."""
    made = choice.of_results(results)
    if made is None:
        return ""
    units = [pool.get("validation_unit", PERCENT) for row in results["rows"] for pool in row["pools"].values()]
    network = f"{_called(made.chosen)}, {_tested(results, made.chosen)}"
    return f"Recommended: {network}: {_reason(made, units[0])} {_doubt(made)}"


def _called(candidate: Candidate) -> str:
    kind = name(candidate.method)
    kind = kind if kind.startswith(("pool", TICKET)) else f"{kind} network"
    return f"the {kind} of round {candidate.round}, {page.percent(candidate.density)}% of the weights"


def _tested(results: Results, chosen: Candidate) -> str:
    """Its test score; of accuracies with the 95% interval of Wilson, which holds near 0 and 1, too."""
    scale = Scale.of(results)
    row = next(row for row in results["rows"] if row["round"] == chosen.round)
    score = row["ticket"] if chosen.method == TICKET else row["pools"][chosen.method]["accuracy"]
    text = f"test {scale.metric} {scale.score(score)}{scale.unit}"
    samples = results.get("metric", {}).get("samples") or results["manifest"].get("samples", {}).get("test")
    if not samples or not scale.is_percent or scale.metric != "accuracy":
        return text
    low, high = wilson(score, samples)
    return f"{text} (95% interval {page.percent(low)} to {page.percent(high)})"


def wilson(share: float, samples: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share that was counted over so many samples."""
    middle = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2)) / (1 + z * z / samples)
    return middle - half, middle + half


def _reason(made: Choice, unit: str) -> str:
    kind = "accuracy" if unit == PERCENT else "score"
    within = f"within one standard error ({100 * made.error:.2f} points) of the best, " if made.error else "the best, "
    others = f"the sparsest of {made.equal} networks whose" if made.equal > 1 else "the only network whose"
    own = "" if made.chosen.score == made.best else f"; its own is {validation(made.chosen.score, unit)}"
    text = f"{others} validation {kind} is {within}{validation(made.best, unit)}{own}"
    if made.chosen.method == TICKET:
        return f"{text}, and a plain ticket does."
    return f"{text}{',' if own else ';'} its ticket's {'' if own else 'is '}{validation(made.ticket.score, unit)}."


def _doubt(made: Choice) -> str:
    samples = "validation samples" if made.samples is None else f"{made.samples:,} validation samples"
    return f"Chosen on {samples} of one seed, which also picked the pools and so flatter them; not on test samples."
