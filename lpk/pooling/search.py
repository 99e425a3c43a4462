"""The pool: interpolating a run's tickets into one stronger ticket of the same sparsity (Algorithms 2 and 3).

Candidates are offered to the target nearest round first. For each, the coefficient whose pruned interpolation predicts
most validation samples correctly is found; it is accepted if it is at least as good as the best network so far.
"""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lpk import ops
from lpk.networks.flat import Flat
from lpk.pooling.calibration import TOLERANCE
from lpk.pooling.criteria import Score
from lpk.pooling.evaluate import Evaluator
from lpk.pooling.interpolations import Interpolations
from lpk.pooling.methods import BACKENDS, COEFFICIENTS, METHODS, PRUNE, SEARCHES, Method
from lpk.pooling.samples import Inputs, Samples
from lpk.pooling.scores import alike, undone
from lpk.progress import Progress
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from lpk.tickets.versions import versions


def pool(
    tickets: Tickets | str | Path | Sequence[Ticket | dict[str, Tensor]],
    target: int | None = None,
    *,
    model: nn.Module,
    validation: Samples | None = None,
    calibration: Inputs | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    criterion: str = "accuracy",
    coefficients: Sequence[float] = COEFFICIENTS,
    method: str = "interpolation",
    prune: str = "during",
    candidates: int | None = None,
    search: str = "bounded",
    statistics: str = "recalibrate",
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    error: float = 0.05,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Pooled | list[Pooled]:
    """Makes a ticket stronger with the other tickets of its run, at the same sparsity (Algorithm 2).

    Args:
        tickets: of one network, ordered by round; a directory of them; or a list, dense to sparse, of tickets or of
            plain state dicts, whose rounds are counted in the list.
        target: the round of the ticket to improve; None: every ticket, one after the other.
        model: the network the tickets belong to; its weights are not used and it is not changed.
        validation: held-out samples that pick: (inputs, integer labels) or a DataLoader of such batches.
        calibration: training samples that renew BatchNorm's statistics for every interpolated network, same forms;
            labels are not looked at, and inputs alone will do.
        evaluate: model -> float, higher is better, in place of the criterion on `validation`.
        criterion: what picks: "accuracy", as in the paper, or "loss", the mean cross-entropy, which tells more of each
            sample: pools were better with it (docs/performance.md).
        coefficients: the α to try, in [0, 1]; α weighs the best network so far. The first of equally good ones wins.
        method: "interpolation" (Algorithm 2), "average" (Algorithm 3), or the paper's baselines "swa" and "ema", which
            gives the network so far the weight 0.95; "ema-newcomer" gives it to the candidate.
        prune: "during": every interpolation is pruned to the target's density; "after": only the final one.
        candidates: how many of the nearest tickets are offered; None: all.
        search: "exhaustive" scores each coefficient on all samples; "bounded" drops one as soon as it cannot win any
            more, and returns the same accepted steps, counts and network; "racing" drops one also when it is unlikely
            to win, and may differ in a step with probability `error`.
        statistics: BatchNorm's running statistics: "recalibrate", "interpolate" or "leave".
        tolerance: calibration stops when the statistics' standard error, relative to a channel's standard deviation,
            is at most this; 0: all calibration samples are used, as torch.optim.swa_utils.update_bn does.
        backend: what evaluates a candidate: "torch", "sparse" (lpk's engine for CPUs, see lpk.sparsify), or "auto" for
            the engine where it can run the whole network.
        error: the probability of a differing step that a racing search may have; no other search uses it.
        batch_size: of calibration and validation, no larger than there are samples; None: the size that each loader
            has itself, and 128 at most. Of calibration more is better than few: a batch's statistics are computed
            from its samples alone, so that a loader of less than 8 at a time, which memory may ask for, gets a warning.
        autocast: torch.bfloat16 or torch.float16 to compute in that dtype where torch.autocast does; None: float32.
        device: where candidates are evaluated; None: where the model is.
        progress: whether to show it.

    Returns:
        The pooled network, or a list of one for each round where target is None.

    Raises:
        ValueError: a target that isn't there, a coefficient outside [0, 1], tickets of another network than `model`,
            no samples, an unknown option; each names what it was and what is possible.
    """
    if isinstance(tickets, str | Path):
        tickets = Tickets.load(tickets)
    elif not isinstance(tickets, Tickets):
        own = [ticket for ticket in tickets if isinstance(ticket, Ticket)]
        states = [state for state in tickets if not isinstance(state, Ticket)]
        if own and states:
            raise ValueError("tickets and state dicts are mixed; a list of either is possible")
        tickets = Tickets.counted(own) if own else Tickets.from_state_dicts(states)
    coefficients = tuple(float(c) for c in coefficients)
    _check_options(
        method=(method, METHODS), prune=(prune, PRUNE), search=(search, SEARCHES), backend=(backend, BACKENDS)
    )
    _check_numbers(coefficients, candidates, error)
    if search == "racing" and (evaluate is not None or criterion != "accuracy"):
        given = "`evaluate`" if evaluate is not None else f"criterion={criterion!r}"
        raise ValueError(f"search is 'racing', which counts errors; with {given} it is not possible")
    try:
        target = None if target is None else operator.index(target)
    except TypeError as problem:
        kind = type(target).__name__
        raise TypeError(f"target is a {kind}; the number of a round is needed, or None for all") from problem
    if target is not None and not 0 <= target < len(tickets):
        raise ValueError(f"target is round {target}; there are tickets of rounds 0 to {len(tickets) - 1}")
    evaluator = Evaluator(
        model,
        tickets.layout,
        validation=validation,
        calibration=calibration,
        evaluate=evaluate,
        criterion=criterion,
        statistics=statistics,
        tolerance=tolerance,
        batch_size=batch_size,
        backend=backend,
        autocast=autocast,
        device=None if device is None else torch.device(device),
    )
    targets = range(len(tickets)) if target is None else [target]
    offered = len(tickets) - 1 if candidates is None else min(candidates, len(tickets) - 1)
    with Progress(method, len(targets) * offered, show=progress) as bar:
        plan = _Plan(tickets, evaluator, method, coefficients, prune, offered, search, error, bar)
        pools, values = [], {}
        for t in targets:
            one = _Pool(tickets[t], plan)
            pools.append(one.run())
            values[t] = one.values
    for doubt in (undone(evaluator.changed), alike(values, by_evaluate=evaluate is not None)):
        if doubt is not None:
            warnings.warn(doubt, stacklevel=2)
    return pools if target is None else pools[0]


def nearest_first(target: int, count: int) -> list[int]:
    """The other rounds of 0..count-1, nearest first; of two equally near the lower one, which is denser, first."""
    return sorted((i for i in range(count) if i != target), key=lambda i: (abs(i - target), i))


@dataclass(frozen=True)
class _Plan:
    """What the pools of all targets have in common."""

    tickets: Tickets
    evaluator: Evaluator
    method: str
    coefficients: tuple[float, ...]
    prune: str
    offered: int
    search: str
    error: float
    progress: Progress


class _Pool:
    """One target's greedy search. `best` is θ_best; the evaluator's flat vectors hold the network being scored."""

    def __init__(self, target: Ticket, plan: _Plan) -> None:
        self.target = target
        self.plan = plan
        self.evaluator = evaluator = plan.evaluator
        self.method = METHODS[plan.method]
        self.bounded = plan.search != "exhaustive" and evaluator.evaluate is None
        self.own = self.best = target.flat.to(evaluator.device)
        self.score = Score(-math.inf, math.nan, None)  # of `best`
        self.favourite = 0.5  # the coefficient accepted last: the next best one is probably near it
        self.steps: list[Step] = []
        self.values: list[list[float]] = []  # the target's, and those of each step, as far as they are known

    def run(self) -> Pooled:
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
        for averaged, i in enumerate(nearest_first(target.round, len(plan.tickets))[: plan.offered], start=1):
            plan.progress.note(self._note(i))
            coefficients = self.method.coefficients(plan.coefficients, averaged)
            self.steps.append((self._greedy_step if self.method.greedy else self._step)(plan.tickets[i], coefficients))
            plan.progress.advance()
        if plan.prune == "after" or not self.method.greedy:
            self._finish()
        flat, mask = target.flat, target.mask
        if self.best is not self.own:
            flat = self.best.to("cpu")
        if self.best.weights is not self.own.weights:
            mask = ops.magnitude_mask(flat.weights, target.keep)
        return Pooled(
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
                "search": plan.search if evaluator.evaluate is None else "exhaustive",
                "criterion": evaluator.criterion if evaluator.evaluate is None else None,
                "error": plan.error if plan.search == "racing" else None,
                "statistics": evaluator.statistics,
                "tolerance": evaluator.tolerance,
                "backend": evaluator.backend,
                "device": str(evaluator.device),
                "autocast": None if evaluator.autocast is None else str(evaluator.autocast),
                "batch_size": evaluator.batch_size,
                "calibration_batch_size": None if evaluator.calibration is None else evaluator.calibration.batch_size,
                "validation_samples": evaluator.total,
                **versions(),
            },
        )

    def _note(self, candidate: int) -> str:
        """What the progress bar says: where the search stands, and how much of the work was not needed so far."""
        evaluator = self.evaluator
        text = f"target {self.target.round}, candidate {candidate}, {evaluator.scored} networks"
        if evaluator.total and self.bounded:
            text += f", {1 - evaluator.validated / (evaluator.scored * evaluator.total):.0%} of the samples saved"
        return text

    def _greedy_step(self, candidate: Ticket, coefficients: tuple[float, ...]) -> Step:
        """Lines 5 to 8 of Algorithm 2.

        Bounded: a coefficient may make as many errors as θ_best (more are not accepted), and no more than the best one
        scored in full so far; as many as that one only if it stands before it in the list, since the first of equally
        good ones wins. A coefficient dropped for making more can therefore neither be the winner nor, being the winner,
        be accepted, whatever the order in which they are scored; each that is not dropped is scored in full. The same
        holds for losses, which are not negative either.

        Racing: see Evaluator.draw_heat. The step differs from the bounded one only if the heat drops the coefficient
        that wins it; that one never makes more errors than are allowed, whatever the others did.
        """
        other = candidate.flat.to(self.evaluator.device)
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
            return Step(candidate.round, None, None, False)
        if won.value < self.score.value:
            return Step(candidate.round, coefficients[winner], won.accuracy, False)
        self.best, self.favourite = network, coefficients[winner]
        self.score = self._scored(won)
        return Step(candidate.round, coefficients[winner], won.accuracy, True)

    def _step(self, candidate: Ticket, coefficients: tuple[float, ...]) -> Step:
        """A baseline's step: the candidate is taken without being scored."""
        (coefficient,) = coefficients
        self._write(self._interpolations(candidate.flat.to(self.evaluator.device), coefficients), 0)
        self.best = self._network()
        return Step(candidate.round, coefficient, None, True)

    def _finish(self) -> None:
        """Prunes, calibrates and scores the final network, where the steps did not."""
        if any(step.accepted for step in self.steps):
            flat = self.evaluator.flat
            flat.load(self.best)
            ops.magnitude_prune(self.best.weights, self.target.keep, out=flat.weights)
            self.evaluator.written()
            self.evaluator.calibrate()
            self.score = self._scored(self.evaluator.score())
            self.best = self._network()

    def _interpolations(self, other: Flat, coefficients: tuple[float, ...]) -> Interpolations:
        keep = None if self.plan.prune == "after" else self.target.keep
        return Interpolations(self.best, other, coefficients, keep)

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


def _check_options(**options: tuple[str, Sequence[str] | dict[str, Method]]) -> None:
    for name, (value, possible) in options.items():
        if value not in possible:
            raise ValueError(f"{name} is {value!r}; one of {', '.join(possible)} is possible")


def _check_numbers(coefficients: tuple[float, ...], candidates: int | None, error: float) -> None:
    if not coefficients:
        raise ValueError("coefficients is empty; at least one is needed")
    for c in coefficients:
        if not 0.0 <= c <= 1.0:
            raise ValueError(f"coefficients holds {c}; a coefficient lies in [0, 1]")
    if candidates is not None and candidates < 0:
        raise ValueError(f"candidates is {candidates}; 0 or more, or None for all, is possible")
    if not 0.0 < error < 1.0:
        raise ValueError(f"error is {error}; a probability between 0 and 1 is needed")
