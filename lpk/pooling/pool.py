"""lpk.pool: what it may be asked for, and a search for each target that it is asked for."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Required, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from lpk import choices
from lpk.distributed import digest, together
from lpk.events import StepEvent
from lpk.pooling.calibration import TOLERANCE
from lpk.pooling.evaluate import Evaluator
from lpk.pooling.methods import BACKENDS, COEFFICIENTS, METHODS, PRUNE, SEARCHES
from lpk.pooling.samples import Inputs, Samples
from lpk.pooling.scores import alike, undone
from lpk.pooling.search import Plan, Search
from lpk.pooling.uploads import Uploads
from lpk.progress import Progress
from lpk.tickets.pooled import Pooled
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets

Given = Tickets | str | Path | Sequence[Ticket | dict[str, Tensor]]  # the forms that tickets may have


class Options(TypedDict, total=False):
    """The keyword arguments of `pool`, once for all of its overloads."""

    model: Required[nn.Module]
    validation: Samples | None
    calibration: Inputs | None
    evaluate: Callable[[nn.Module], float] | None
    criterion: str
    coefficients: Sequence[float]
    method: str
    prune: str
    scope: str
    candidates: int | None
    search: str
    statistics: str
    tolerance: float
    backend: str
    error: float
    batch_size: int | None
    autocast: torch.dtype | str | None
    device: torch.device | str | None
    on_step: Callable[[StepEvent], object] | None
    on_pool: Callable[[Pooled], object] | None
    progress: bool


@overload
def pool(tickets: Given, target: int, **options: Unpack[Options]) -> Pooled: ...
@overload
def pool(tickets: Given, target: None = None, **options: Unpack[Options]) -> list[Pooled]: ...
@overload
def pool(tickets: Given, target: int | None, **options: Unpack[Options]) -> Pooled | list[Pooled]: ...
def pool(
    tickets: Given,
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
    scope: str = "global",
    candidates: int | None = None,
    search: str = "bounded",
    statistics: str = "recalibrate",
    tolerance: float = TOLERANCE,
    backend: str = "auto",
    error: float = 0.05,
    batch_size: int | None = None,
    autocast: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    on_step: Callable[[StepEvent], object] | None = None,
    on_pool: Callable[[Pooled], object] | None = None,
    progress: bool = True,
) -> Pooled | list[Pooled]:
    """Makes a ticket stronger with the other tickets of its run, at the same sparsity (Algorithm 2).

    Args:
        tickets: of one network, ordered by round; a directory of them; or a list, dense to sparse, of tickets or of
            plain state dicts, whose rounds are counted in the list.
        target: the round of the ticket to improve; None: every ticket, one after the other. Under torchrun the
            processes then take targets in turn, and each returns the whole list: see docs/distributed.md.
        model: the network the tickets belong to; its weights are not used and it is not changed.
        validation: held-out samples that pick: (inputs, integer labels) or a DataLoader of such batches.
        calibration: training samples that renew BatchNorm's statistics for every interpolated network, same forms;
            labels are not looked at, and inputs alone will do.
        evaluate: model -> float, higher is better, in place of the criterion on `validation`.
        criterion: what picks: "accuracy", as in the paper, or "loss", the mean cross-entropy, which tells more of each
            sample. Which one makes better pools differs from training to training (docs/when.md).
        coefficients: the α to try, in [0, 1]; α weighs the best network so far. The first of equally good ones wins.
        method: "interpolation" (Algorithm 2), "average" (Algorithm 3), or the paper's baselines "swa" and "ema", which
            gives the network so far the weight 0.95; "ema-newcomer" gives it to the candidate.
        prune: "during": every interpolation is pruned to the target's density; "after": only the final one.
        scope: "global": as many of all weights survive as the target has, wherever they are, as in the paper; "layer":
            as many of each layer. Pass it for tickets that `lpk.imp` pruned with scope="layer" or a `floor`, which a
            global pool does not keep.
        candidates: how many of the nearest tickets are offered; None: all.
        search: "exhaustive" scores each coefficient on all samples; "bounded" drops one as soon as it cannot win any
            more, and returns the same accepted steps, counts and network; "racing" drops one also when it is unlikely
            to win, and may differ in a step with probability `error`.
        statistics: BatchNorm's running statistics: "recalibrate", "interpolate" or "leave".
        tolerance: calibration stops when the statistics' standard error, relative to a channel's standard deviation,
            is at most this; 0: all calibration samples are used, as torch.optim.swa_utils.update_bn does.
        backend: what evaluates a candidate: "torch"; "graph", PyTorch recorded as CUDA graphs and replayed, for the
            same numbers sooner; "sparse", lpk's engine for CPUs, see lpk.sparsify; or "auto": the engine on a CPU where
            it can run the whole network, graphs on a GPU where it can be recorded, else "torch". The pooled network's
            `settings` say which it was, and as graph_problem why it was no graph.
        error: the probability of a differing step that a racing search may have; no other search uses it.
        batch_size: of calibration and validation, no larger than there are samples; None: the size that each loader
            has itself, and 128 at most; for validation on a GPU, which needs more to be busy, four times the loader's,
            and 256 at most. Of calibration more is better than few: a batch's statistics are computed from its samples
            alone, so that a loader of less than 8 at a time, which memory may ask for, gets a warning.
        autocast: torch.bfloat16 or torch.float16, or their names, to compute in that dtype where torch.autocast does;
            None: float32, in which PyTorch's convolutions on a GPU multiply what they have rounded to TF32, unless
            torch.backends.cudnn.allow_tf32 is False (`settings` say so).
        device: where candidates are evaluated; None: where the model is.
        on_step: called with a `lpk.StepEvent` after each candidate. What it raises ends the search.
        on_pool: called with each pooled network as soon as there is one, by the process that made it: to save it, so
            that an interrupt loses no more than the target it comes in.
        progress: whether to show it.

    Returns:
        The pooled network, or a list of one for each round where target is None.

    Raises:
        ValueError: a target that isn't there, a coefficient outside [0, 1], tickets of another network than `model`,
            no samples, an unknown option; each names what it was and what is possible.
        lpk.distributed.RankFailed: another process of torchrun did; it says which, and why.
    """
    tickets = read_tickets(tickets)
    coefficients = tuple(float(c) for c in coefficients)
    choices.check("method", method, METHODS)
    choices.check("prune", prune, PRUNE)
    choices.check("scope", scope, choices.SCOPES)
    choices.check("search", search, SEARCHES)
    choices.check("backend", backend, BACKENDS)
    _check_numbers(coefficients, candidates, error)
    if search == "racing" and (evaluate is not None or criterion != "accuracy"):
        given = "`evaluate`" if evaluate is not None else f"criterion={criterion!r}"
        raise ValueError(f"search is 'racing', which counts errors; with {given} it is not possible")
    target = _round(target, len(tickets))
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
    uploads = Uploads(tickets, evaluator.device)
    with (
        together(target is None) as ranks,
        closing(uploads),
        Progress(method, len(targets) * offered, show=progress and ranks.first) as bar,
    ):
        if ranks.count > 1:
            digests = {f"the ticket of round {ticket.round}": digest(_bits(ticket)) for ticket in tickets}
            ranks.check_alike(digests, "pass the same tickets in all processes, or call it in lpk.distributed.alone()")
        plan = Plan(
            tickets, evaluator, method, coefficients, prune, scope, offered, search, error, bar, uploads, on_step
        )
        made, values, reached = {}, {}, 0
        for i in ranks.shares(len(targets)):
            bar.advance((i - reached) * offered)  # what other ranks took
            evaluator.restart()
            one = Search(tickets[targets[i]], plan)
            made[i] = one.run()
            values[targets[i]] = one.values
            if on_pool is not None:
                on_pool(made[i])
            reached = i + 1
        bar.advance((len(targets) - reached) * offered)
        pools = [replace(pooled, layout=tickets.layout) for pooled in ranks.collect(made, len(targets))]
        told = ranks.gather((evaluator.changed, values))
    changed = next((names for names, _ in told if names), [])
    values = {t: found for _, own in told for t, found in own.items()}
    for doubt in (undone(changed), alike(values, by_evaluate=evaluate is not None)):
        if doubt is not None and ranks.first:
            warnings.warn(doubt, stacklevel=2)
    return pools if target is None else pools[0]


def read_tickets(tickets: Given) -> Tickets:
    """Tickets in any of the forms that `pool` takes."""
    if isinstance(tickets, str | Path):
        return Tickets.load(tickets)
    if isinstance(tickets, Tickets):
        return tickets
    own = [ticket for ticket in tickets if isinstance(ticket, Ticket)]
    states = [state for state in tickets if not isinstance(state, Ticket)]
    if own and states:
        raise ValueError("tickets and state dicts are mixed; a list of either is possible")
    return Tickets.counted(own) if own else Tickets.from_state_dicts(states)


def _bits(ticket: Ticket) -> list[Tensor]:
    return [ticket.flat.weights, ticket.flat.rest, *ticket.flat.integers.values(), ticket.mask]


def _round(target: int | None, count: int) -> int | None:
    """The round of one of `count` tickets; None for all."""
    try:
        target = None if target is None else operator.index(target)
    except TypeError as problem:
        kind = type(target).__name__
        raise TypeError(f"target is a {kind}; the number of a round is needed, or None for all") from problem
    if target is not None and not 0 <= target < count:
        raise ValueError(f"target is round {target}; there are tickets of rounds 0 to {count - 1}")
    return target


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
