"""Iterative magnitude pruning with rewinding (Algorithm 1), keeping every ticket."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpk import choices
from lpk.distributed import Ranks, together
from lpk.events import RoundEvent
from lpk.networks.flat import Layout, StateDict
from lpk.networks.prunable import Prunable, left_out, prunable_names
from lpk.networks.states import state_names
from lpk.networks.wrappers import unwrapped
from lpk.progress import Progress
from lpk.pruning.masking import kept_pruned
from lpk.pruning.precautions import Precautions, copied_state, emptied, load, trained
from lpk.pruning.recipe import stream
from lpk.pruning.resuming import Resumable, RunStore
from lpk.pruning.sharing import SharedStore, agree, begin_alike
from lpk.pruning.sparsity import Sparsity
from lpk.tickets import files
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets

Train = Callable[[nn.Module, int, int], object]
OnRound = Callable[[RoundEvent], object]

LOG = logging.getLogger(__name__)

RESTARTS = ("rewind", "learning-rate")


def imp(
    model: nn.Module,
    train: Train,
    *,
    epochs: int,
    rounds: int = 19,
    fraction: float | Sequence[float] | None = None,
    density: float | None = None,
    scope: str = "global",
    floor: float = 0.0,
    rewind: int | None = None,
    restart: str = "rewind",
    prunable: Prunable = None,
    store: str | Path | None = None,
    seed: int | None = None,
    on_round: OnRound | None = None,
    progress: bool = True,
) -> Tickets:
    """Trains, prunes and rewinds a network `rounds` times (Algorithm 1).

    Args:
        model: trained in place; it ends as the last ticket, also where a store held all of them already. `train`
            gets it as it is, in torch.nn.DataParallel or torch.compile, too; the tickets have the network's own names.
            In DistributedDataParallel the processes of torchrun call `imp` together: see docs/distributed.md.
        train: train(model, start, stop) trains from epoch `start` to epoch `stop` with the learning rates of those
            epochs and a new optimizer. Pruned weights stay exactly 0 meanwhile, through momentum and weight decay, with
            any torch.optim optimizer. A `Resumable` one is called epoch by epoch. Numbers in a dict that it returns are
            shown beside the progress bar, and `on_round` gets them.
        epochs: of one round, counted from initialization.
        rounds: T; T + 1 tickets result, round 0 being dense. The same call with more rounds goes on in the same store
            and, given a seed, ends as if they had been asked for at once.
        fraction: of the remaining weights, pruned by magnitude in each round; or one for each round, which more rounds
            extend. None: 0.2, where there is no `density`.
        density: what is left in the last round, in place of `fraction`: the densities of the rounds are a geometric
            sequence, so that more rounds are another run.
        scope: "global": those of lowest magnitude of all prunable tensors together; "layer": the same fraction of each.
        floor: the density that each tensor keeps at least; where the scope would leave less, the others are pruned
            more. Each round leaves as many weights as without.
        rewind: the epoch that every round restarts from; 0: initialization. None: 5% of the epochs as in the paper, at
            least one where there are two.
        restart: with which weights (the whole state dict): "rewind", those of that epoch, as in the paper;
            "learning-rate", those that the round before ended with, so that the schedule alone is rewound.
        prunable: a predicate (name, parameter) -> bool, names, or None: the weights of convolutions, linear layers and
            nn.MultiheadAttention, frozen ones (requires_grad False) excepted and the linear layers whose outputs the
            network returns (where torch.fx can't trace it, the last linear layer). Names are those of the state dict.
        store: a directory; a relative one is of the working directory at the start. An interrupted run goes on there
            from the last finished round (from the last finished epoch if `train` is Resumable) when called again with
            the same arguments, `rounds` excepted: more are possible.
        seed: where given, PyTorch's generators are seeded before each call of `train`, so that a resumed run equals an
            uninterrupted one.
        on_round: called with a `lpk.RoundEvent` after each round whose ticket this call makes, once that is stored.
            What it raises ends the run as an interrupt does.
        progress: whether to show it.

    Returns:
        The tickets, on the CPU.

    Raises:
        ValueError: numbers out of range, `fraction` and `density`, a `floor` that leaves too few weights for the other
            tensors, nothing prunable, a frozen weight that `prunable` chooses, by default a layer
            whose weight is computed from other parameters, parameters that are or became NaN or infinite, a network
            that its own state dict can't be loaded into, a tensor whose shape or dtype `train` changed, a store that
            belongs to another network or other settings.
        TypeError: a tensor that can't be interpolated, or one or a state of `train` that can't be stored, where there
            is a store.
        RuntimeError: the store is in use by another process.
        lpk.distributed.RankFailed: another process of torchrun raised; it says which, and why.

    Warns where `train` left the parameters as they were (it trained a copy), and where pruning takes the last weight of
    a layer or none at all. Logs to "lpk" which matrices the default for `prunable` leaves out, where they are more than
    a fifth of the parameters.
    """
    if rewind is None:
        rewind = min(max(1, round(0.05 * epochs)), max(epochs - 1, 0))
    sparsity = Sparsity(rounds, fraction, density, scope, floor)
    _check(epochs=epochs, rewind=rewind, restart=restart)
    network = unwrapped(model)
    layout = Layout.of_model(network, _trainable(network, prunable))
    keeps = sparsity.keeps(layout)
    if prunable is None and (text := left_out(network, layout.prunable)) is not None:
        LOG.warning(text)
    settings = {"epochs": epochs, "rounds": rounds, **sparsity.settings()}
    settings |= {"rewind": rewind, "restart": restart, "seed": seed}
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(together())
        run = _Run(model, train, layout, settings, on_round, ranks)
        if store is not None:
            directory = files.absolute(store)
            if ranks.first:
                stack.enter_context(files.locked(directory))
            run.open(directory)
            stack.callback(run.settle)
        show = progress and ranks.first
        bar = stack.enter_context(Progress("imp", epochs + rounds * (epochs - rewind), show=show))
        tickets = run.finished()
        for round_ in range(len(tickets)):
            bar.advance(epochs - (rewind if round_ else 0))
        mask = tickets[-1].mask if tickets else torch.ones(layout.n, dtype=torch.bool, device="cpu")
        for round_ in range(len(tickets), rounds + 1):
            if round_ > 0:
                mask, before = sparsity.next_mask(tickets[-1], keeps[round_]), mask
                run.warn_of(round_, mask, before)
            tickets.append(run.round(round_, mask, tickets, bar))
        load(network, tickets[-1].state_dict)
        run.close()
    return Tickets(tickets)


class _Run:
    """The state of one run: the network, the weights it rewinds to where it does, and the store they are kept in."""

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        layout: Layout,
        settings: dict[str, Any],
        on_round: OnRound | None,
        ranks: Ranks,
    ) -> None:
        self.given = model  # what the user's function trains
        self.model = unwrapped(model)
        self.train = train
        self.layout = layout
        self.settings = settings
        self.on_round = on_round
        self.ranks = ranks
        begin_alike(ranks, self.model, {**settings, "prunable": layout.prunable})
        self.precautions = Precautions(self.model, layout)
        self.warned: set[str] = set()
        self.metrics: dict[str, float] = {}  # what the last call of `train` returned
        self.trained = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self.rewind_state: StateDict | None = None
        self.store: SharedStore | None = None

    # --- the store ----------------------------------------------------------------------------------------------------

    def open(self, directory: Path) -> None:
        """Takes up what an earlier call left in the directory, after checking that it was the same run."""
        self.store = SharedStore(self.ranks, lambda: RunStore(directory, self.model, self.layout, self.settings))
        if self._rewinds:
            self.rewind_state = self.store.read_rewind()

    def finished(self) -> list[Ticket]:
        return self.store.finished() if self.store is not None else []

    def settle(self) -> None:
        if self.store is not None:
            self.store.settle()

    def close(self) -> None:
        if self.store is not None:
            self.store.close()

    # --- warnings -----------------------------------------------------------------------------------------------------

    def warn_of(self, round_: int, mask: Tensor, before: Tensor) -> None:
        """Warns of a mask that is not what the user may expect after the one before."""
        if (text := emptied(self.layout, mask, before)) is not None:
            self._warn(f"round {round_}: {text}")
        if torch.equal(mask, before):
            asked = self.settings["fraction"]
            if isinstance(asked, list):
                asked = asked[round_ - 1]
            share = f"{self.settings['density']} in {self.settings['rounds']} rounds" if asked is None else asked
            other = "lower `density`" if asked is None else "larger `fraction`"
            self._warn(
                f"round {round_} prunes nothing: {share} of {int(mask.sum())} weights is less than half a weight; a "
                f"{other} or fewer `rounds` are possible",
                once="nothing pruned",
            )

    def _warn(self, text: str, *, once: str | None = None) -> None:
        """Warns who called lpk.imp, to be called by what that calls; of what is called `once` one time in a run."""
        if once not in self.warned and self.ranks.first:
            warnings.warn(text, stacklevel=4)
        if once is not None:
            self.warned.add(once)

    # --- training -----------------------------------------------------------------------------------------------------

    def round(self, round_: int, mask: Tensor, tickets: Sequence[Ticket], bar: Progress) -> Ticket:
        """Trains round `round_` to its end, stores the ticket, and says so; `tickets`: of the rounds before."""
        began, self.metrics = time.perf_counter(), {}
        first = tickets[0] if tickets else None
        start = self._start(round_, tickets, bar)
        what = "" if self._rewinds else "learning rate "
        rewound = f", {what}rewound to epoch {self.settings['rewind']}" if round_ > 0 else ""
        note = f"round {round_}: {int(mask.sum()) / self.layout.n:.1%} of the weights, {self._layers()}{rewound}"
        bar.note(note)
        with kept_pruned(self.model, self.layout, mask, self.precautions.check_shapes) as mask_all:
            before = {parameter: parameter.detach().clone() for parameter in self.model.parameters()}
            for begin, end in self._legs(start):
                self._train(round_, begin, end)
                bar.advance(end - begin)
                if self.metrics:
                    bar.note(f"{note}; epoch {end}: {_words(self.metrics)}")
            moved = mask_all()
        if moved:
            self._warn(
                "train moved pruned weights after its last optimizer step, without torch.optim, or in parameters that "
                "it put in the place of the network's; they were set to 0"
            )
        if not trained(self.model, before):
            earlier = "those it started from" if round_ else "those before it"
            self._warn(
                f"train changed no parameter: the weights of round {round_} are {earlier}. It has to train the network "
                "that it is given, in place; where it trains a copy, or in another process, let it load the result: "
                "model.load_state_dict(...)",
                once="not trained",
            )
        try:
            ticket = Ticket.of(round_, self.layout, self.model.state_dict(), mask)
            self.precautions.check_values(ticket.flat, first.flat if first else None)
        except ValueError as error:
            raise ValueError(f"training of round {round_} diverged: {error}") from error
        if self.store is not None:
            self.store.append(ticket)
        event = RoundEvent(
            round=round_,
            rounds=self.settings["rounds"],
            density=ticket.density,
            keep=ticket.keep,
            seconds=time.perf_counter() - began,
            metrics=self.metrics,
            ticket=ticket,
        )
        said = f"; {_words(self.metrics)}" if self.metrics else ""
        LOG.info("%s; %d weights remain, %.1f s%s", note, event.keep, event.seconds, said)
        if self.on_round is not None:
            self.on_round(event)
        return ticket

    def _start(self, round_: int, tickets: Sequence[Ticket], bar: Progress) -> int:
        """Makes the network and `train` ready for a round; returns the epoch that it starts from."""
        rewind = self.settings["rewind"]
        start = 0 if round_ == 0 else rewind
        for parameter, is_trained in self.trained:  # whatever an earlier round froze
            parameter.requires_grad_(is_trained)
        if isinstance(self.train, Resumable):
            self.train.start_round(round_)
            if self.store is not None:
                self.store.check_storable(self.train)
                if (stored := self.store.read_epoch(round_)) is not None:
                    resumed, state, of_train = stored
                    load(self.model, state)
                    self.train.load_state_dict(of_train)
                    LOG.info("round %d goes on from epoch %d", round_, resumed)
                    bar.advance(resumed - start)
                    return resumed
        if round_ > 0 and not self._rewinds:
            load(self.model, tickets[-1].state_dict)  # as it was stored: a resumed run has nothing else
        elif round_ > 0:
            assert self.rewind_state is not None
            load(self.model, self.rewind_state)
        elif rewind == 0:
            self._remember_rewind()
        return start

    def _train(self, round_: int, begin: int, end: int) -> None:
        """Trains from epoch `begin` to epoch `end`, and stores what is needed to go on from there."""
        if self.settings["seed"] is not None:
            torch.manual_seed(stream(self.settings["seed"], "train", round_, begin))
        self.metrics = _numbers(self.train(self.given, begin, end))
        self.precautions.check_entries()
        agree(self.ranks, self.model)
        if round_ == 0 and end == self.settings["rewind"]:
            self._remember_rewind()
        if self.store is not None and isinstance(self.train, Resumable) and end < self.settings["epochs"]:
            self.store.save_epoch(round_, end, self.train)

    def _layers(self) -> str:
        """How many tensors are pruned, and which matrices are not: "3 layers (spared: fc.weight)"."""
        layers, spared = len(self.layout.weights), self.precautions.parameters.intersection(self.layout.spared)
        count = f"{layers} layer{'s' * (layers != 1)}"
        return f"{count} (spared: {', '.join(n for n in self.layout.spared if n in spared)})" if spared else count

    def _legs(self, start: int) -> Iterator[tuple[int, int]]:
        """The calls of `train` from `start` on: epoch by epoch where it can resume, else up to the rewind epoch."""
        rewind, epochs = self.settings["rewind"], self.settings["epochs"]
        if isinstance(self.train, Resumable):
            yield from ((epoch, epoch + 1) for epoch in range(start, epochs))
            return
        if start < rewind:
            yield start, rewind
        yield max(start, rewind), epochs

    @property
    def _rewinds(self) -> bool:
        """Whether rounds restart from the weights of the rewind epoch."""
        return bool(self.settings["restart"] == "rewind")

    def _remember_rewind(self) -> None:
        if not self._rewinds:
            return
        self.rewind_state = copied_state(self.model)
        if self.store is not None:
            self.store.save_rewind()


def _numbers(returned: object) -> dict[str, float]:
    """The plain numbers of a dict that `train` returned. A tensor is none: to read it, a device may have to be waited
    for."""
    if not isinstance(returned, Mapping):
        return {}
    numbers = {name: value for name, value in returned.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if isinstance(name, str)}


def _words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _check(*, epochs: int, rewind: int, restart: str) -> None:
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; at least 1 is needed")
    choices.check("restart", restart, RESTARTS)
    if not 0 <= rewind < epochs:
        raise ValueError(f"rewind is {rewind}; an epoch from 0 to {epochs - 1} is possible")


def _trainable(model: nn.Module, prunable: Prunable) -> list[str]:
    """The names of the prunable parameters. Frozen ones are left out by default, and refused where they are chosen."""
    names = prunable_names(model, prunable)
    frozen = [name for parameter, name in state_names(model).items() if name in names and not parameter.requires_grad]
    if frozen and prunable is not None:
        raise ValueError(
            f"{frozen[0]!r} is to be pruned, but it is frozen (requires_grad is False), so that no round would train "
            "it: leave it out of `prunable`, or call requires_grad_(True)"
        )
    return [name for name in names if name not in frozen]
