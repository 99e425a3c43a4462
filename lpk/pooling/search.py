"""Algorithms 2 and 3: the greedy search of one target among the tickets of its run, and the baselines SWA and EMA.

Candidates are offered to the target nearest round first. For each, the coefficient whose pruned interpolation predicts
most validation samples correctly is found; it is accepted if it is at least as good as the best network so far.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lpk import ops
from lpk.events import StepEvent
from lpk.networks.flat import Flat
from lpk.pooling.criteria import Score
from lpk.pooling.evaluate import Evaluator
from lpk.pooling.interpolations import Interpolations, kept, kept_mask
from lpk.pooling.methods import METHODS
from lpk.pooling.uploads import Uploads
from lpk.progress import Progress
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from lpk.tickets.versions import versions

LOG = logging.getLogger(__name__)


def nearest_first(target: int, count: int) -> list[int]:
    """The other rounds of 0..count-1, nearest first; of two equally near the lower one, which is denser, first."""
    return sorted((i for i in range(count) if i != target), key=lambda i: (abs(i - target), i))


@dataclass(frozen=True)
class Plan:
    """What the searches of all targets have in common."""

    tickets: Tickets
    evaluator: Evaluator
    method: str
    coefficients: tuple[float, ...]
    prune: str
    scope: str
    offered: int
    search: str
    error: float
    progress: Progress
    uploads: Uploads
    on_step: Callable[[StepEvent], object] | None = None


class Search:
    """One target's greedy search. `best` is θ_best; the evaluator's flat vectors hold the network being scored."""

    def __init__(self, target: Ticket, plan: Plan) -> None:
        self.target = target
        self.plan = plan
        self.evaluator = evaluator = plan.evaluator
        self.method = METHODS[plan.method]
        self.kept = kept(target, plan.scope)
        self.bounded = plan.search != "exhaustive" and evaluator.evaluate is None
        self.own = self.best = plan.uploads.take(target.round)
        self.score = Score(-math.inf, math.nan, None)  # of `best`
        self.favourite = 0.5  # the coefficient accepted last: the next best one is probably near it
        self.steps: list[Step] = []
        self.values: list[list[float]] = []  # the target's, and those of each step, as far as they are known

    def run(self) -> Pooled:
        """Offers the target its candidates, nearest first."""
        target, evaluator, plan = self.target, self.evaluator, self.plan
        began, before = time.perf_counter(), (evaluator.forward_samples, evaluator.validated)
        evaluator.flat.load(self.own)
        evaluator.written()
        self.score = baseline = self._scored(evaluator.score())
        self.values.append([baseline.value])
        if evaluator.evaluate is not None and not torch.equal(evaluator.flat.rest, self.own.rest):
            # BatchNorm's statistics, renewed.
            self.best = Flat(self.own.weights, evaluator.flat.rest.clone(), self.own.integers)
        if math.isnan(baseline.value):
            raise ValueError(f"evaluate returned nan for the ticket of round {target.round}; a number is needed")
        order = nearest_first(target.round, len(plan.tickets))[: plan.offered]
        for averaged, (i, following) in enumerate(zip(order, [*order, None][1:], strict=True), start=1):
            plan.progress.note(self._note(i))
            coefficients = self.method.coefficients(plan.coefficients, averaged)
            other = plan.uploads.take(i, following)
            self.steps.append((self._greedy_step if self.method.greedy else self._step)(i, other, coefficients))
            plan.progress.advance()
            self._tell(averaged, len(order), time.perf_counter() - began)
        if plan.prune == "after" or not self.method.greedy:
            self._finish()
        flat, mask = target.flat, target.mask
        if self.best is not self.own:
            flat = self.best.to("cpu")
        if self.best.weights is not self.own.weights:
            mask = kept_mask(flat.weights, self.kept)
        pooled = Pooled(
            round=target.round,
            layout=target.layout,
            flat=flat,
            mask=mask,
            accuracy=self.score.accuracy,
            baseline_accuracy=baseline.accuracy,
            steps=tuple(self.steps),
            forward_samples=evaluator.forward_samples - before[0],
            validation_samples=evaluator.validated - before[1],
            seconds=time.perf_counter() - began,
            settings={
                "method": plan.method,
                "prune": plan.prune,
                "scope": plan.scope,
                "search": plan.search if evaluator.evaluate is None else "exhaustive",
                "criterion": evaluator.criterion if evaluator.evaluate is None else None,
                "error": plan.error if plan.search == "racing" else None,
                "statistics": evaluator.statistics,
                "tolerance": evaluator.tolerance,
                "backend": evaluator.backend,
                "graph_problem": evaluator.graph_problem,
                "device": str(evaluator.device),
                "tf32": evaluator.tf32,
                "autocast": None if evaluator.autocast is None else str(evaluator.autocast),
                "batch_size": evaluator.batch_size,
                "calibration_batch_size": None if evaluator.calibration is None else evaluator.calibration.batch_size,
                "validation_samples": evaluator.total,
                **versions(),
            },
        )
        LOG.info("%s, %.1f s", pooled, pooled.seconds)
        return pooled

    def _tell(self, number: int, count: int, seconds: float) -> None:
        """Tells of the last step, the `number`-th of `count`."""
        step, best = self.steps[-1], self.score.accuracy
        event = StepEvent(self.target.round, number, count, *step, best=best, seconds=seconds)
        LOG.debug("%s", event)
        if self.plan.on_step is not None:
            self.plan.on_step(event)

    def _note(self, candidate: int) -> str:
        """What the progress bar says: where the search stands, and how much of the work was not needed so far."""
        evaluator = self.evaluator
        text = f"target {self.target.round}, candidate {candidate}, {evaluator.scored} networks"
        if evaluator.total and self.bounded:
            text += f", {1 - evaluator.validated / (evaluator.scored * evaluator.total):.0%} of the samples saved"
        return text

    def _greedy_step(self, candidate: int, other: Flat, coefficients: tuple[float, ...]) -> Step:
        """Lines 5 to 8 of Algorithm 2.

        Bounded: a coefficient may make as many errors as θ_best (more are not accepted), and no more than the best one
        scored in full so far; as many as that one only if it stands before it in the list, since the first of equally
        good ones wins. A coefficient dropped for making more can therefore neither be the winner nor, being the winner,
        be accepted, whatever the order in which they are scored; each that is not dropped is scored in full. The same
        holds for losses, which are not negative either.

        Racing: see lpk.pooling.race. The step differs from the bounded one only if the heat drops the coefficient
        that wins it; that one never makes more errors than are allowed, whatever the others did.
        """
        interpolations = self._interpolations(other, coefficients)
        highest = self.evaluator.highest
        if self.plan.search == "racing":
            self.evaluator.draw_heat(int(highest - self.score.value), self.plan.error)
        winner, won, network = -1, Score(-math.inf, math.nan, None), self.best
        self.values.append([])
        for k in sorted(range(len(coefficients)), key=lambda k: abs(coefficients[k] - self.favourite)):
            most = math.inf
            if self.bounded:
                most = highest - self.score.value
                if winner >= 0:
                    most = min(most, highest - won.value - (0 if k < winner else 1))
                if most < 0:
                    continue
            self._write(interpolations, k)
            self.evaluator.calibrate()
            score = self.evaluator.score(most)
            if score is None:
                if most >= highest - self.score.value:  # worse than θ_best; else it may be as good as the winner
                    self.values[-1].append(-math.inf)
                continue
            self.values[-1].append(score.value)
            if score.value > won.value or (score.value == won.value and k < winner):
                winner, won, network = k, score, self._network()
        if winner < 0:
            return Step(candidate, None, None, False)
        if won.value < self.score.value:
            return Step(candidate, coefficients[winner], won.accuracy, False)
        self.best, self.favourite = network, coefficients[winner]
        self.score = self._scored(won)
        return Step(candidate, coefficients[winner], won.accuracy, True)

    def _step(self, candidate: int, other: Flat, coefficients: tuple[float, ...]) -> Step:
        """A baseline's step: the candidate is taken without being scored."""
        (coefficient,) = coefficients
        self._write(self._interpolations(other, coefficients), 0)
        self.best = self._network()
        return Step(candidate, coefficient, None, True)

    def _finish(self) -> None:
        """Prunes, calibrates and scores the final network, where the steps did not."""
        if any(step.accepted for step in self.steps):
            flat = self.evaluator.flat
            flat.load(self.best)
            for span, keep in self.kept:
                ops.magnitude_prune(self.best.weights[span], keep, out=flat.weights[span])
            self.evaluator.written()
            self.evaluator.calibrate()
            self.score = self._scored(self.evaluator.score())
            self.best = self._network()

    def _interpolations(self, other: Flat, coefficients: tuple[float, ...]) -> Interpolations:
        return Interpolations(self.best, other, coefficients, None if self.plan.prune == "after" else self.kept)

    def _write(self, interpolations: Interpolations, k: int) -> None:
        """The k-th interpolation, into the vectors that the evaluator's model computes with."""
        flat = self.evaluator.flat
        interpolations.write(k, weights=flat.weights, rest=flat.rest)
        if self.evaluator.statistics == "leave":
            flat.rest.copy_(torch.where(flat.statistics, self.own.rest, flat.rest))
        self.evaluator.written()

    def _network(self) -> Flat:
        """The network in the evaluator's vectors; integer entries stay the target's."""
        flat = self.evaluator.flat
        return Flat(flat.weights.clone(), flat.rest.clone(), self.own.integers)

    def _scored(self, score: Score | None) -> Score:
        """θ_best's score; the samples it finds hardest are asked first from now on."""
        assert score is not None
        self.evaluator.hardest_first(score)
        return score
