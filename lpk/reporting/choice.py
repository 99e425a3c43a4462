"""Which network to ship: chosen by validation scores and density alone. What is tested chooses nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TICKET = "ticket"  # the method of a network that was not pooled
PERCENT = "%"


@dataclass(frozen=True)
class Candidate:
    """What is known of a network before it is tested.

    Attributes:
        method: that of the pool, or TICKET.
        density: weights remaining / prunable weights; networks of one density cost the same.
        score: on the validation samples.
    """

    round: int
    method: str
    density: float
    score: float


@dataclass(frozen=True)
class Choice:
    """What `choose` returns.

    Attributes:
        chosen: the network.
        ticket: that of its round; itself, where it is one.
        best: the highest validation score.
        error: its standard error; 0 where none is known.
        equal: how many networks are within one standard error of the best, the chosen one among them.
        samples: how many validation samples there are; None where that is not known.
    """

    chosen: Candidate
    ticket: Candidate
    best: float
    error: float
    equal: int
    samples: int | None


def choose(candidates: Sequence[Candidate], samples: int | None) -> Choice | None:
    """The rule of one standard error: of the networks that are within it of the best one, the sparsest.

    Of those, the plain ticket where it is one of them, else the pool with the highest score, the first of equals. None:
    no network was validated.

    Args:
        candidates: in the order of preference between equals.
        samples: how many validation samples were counted for the scores, which are then fractions of them; None: scores
            have no known error, and only the best are equal.
    """
    if not candidates:
        return None
    best = max(candidate.score for candidate in candidates)
    error = math.sqrt(max(best * (1 - best), 0) / samples) if samples else 0.0
    equal = [candidate for candidate in candidates if candidate.score >= best - error]
    density = min(candidate.density for candidate in equal)
    sparsest = [candidate for candidate in equal if candidate.density == density]
    plain = [candidate for candidate in sparsest if candidate.method == TICKET]
    chosen = plain[0] if plain else max(sparsest, key=lambda candidate: candidate.score)
    ticket = next(c for c in candidates if c.method == TICKET and c.round == chosen.round)
    return Choice(chosen, ticket, best, error, len(equal), samples)


def of_results(results: Mapping[str, Any]) -> Choice | None:
    """The choice among the networks of a results.json; tickets that were never a target have no validation score."""
    pools = [pool for row in results["rows"] for pool in row["pools"].values()]
    units = {pool.get("validation_unit", PERCENT) for pool in pools}
    if len(units) > 1:  # picked by scores of different kinds
        return None
    counted = {pool.get("validation_samples") for pool in pools}
    samples = counted.pop() if len(counted) == 1 else None
    if samples is None:  # results of older versions do not say it
        samples = results["manifest"].get("samples", {}).get("validation")
    return choose(list(_candidates(results)), samples if units == {PERCENT} else None)


def _candidates(results: Mapping[str, Any]) -> Iterator[Candidate]:
    for row in results["rows"]:
        pools = [(method, row["pools"][method]) for method in results["methods"] if method in row["pools"]]
        for _, pool in pools[:1]:
            yield Candidate(row["round"], TICKET, row["density"], pool["baseline_validation_accuracy"])
        for method, pool in pools:
            yield Candidate(row["round"], method, row["density"], pool["validation_accuracy"])
