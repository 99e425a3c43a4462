"""What a run of lpk.imp keeps in its directory, and how it goes on from there after an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lpk import schema
from lpk.networks.flat import Layout, StateDict
from lpk.pruning.sparsity import per_round
from lpk.schema import whole
from lpk.tickets import files, nested
from lpk.tickets.store import TicketStore
from lpk.tickets.tensors import check_tensor
from lpk.tickets.ticket import Ticket

REWIND = "rewind.safetensors"
CHECKPOINT = "checkpoint.safetensors"

# What runs did that were stored before there were these settings.
EARLIER = {"density": None, "scope": "global", "floor": 0.0, "restart": "rewind"}


@runtime_checkable
class Resumable(Protocol):
    """A `train` that can go on at any epoch: `lpk.Trainer`, or a user's own with these methods.

    `state_dict` returns a dict of tensors, numbers, strings and None, nested as an optimizer's is. It is also called
    before a round's first epoch, to see whether it can be stored; where it raises then, that is left for later.
    """

    def __call__(self, model: nn.Module, start: int, stop: int) -> object: ...
    def start_round(self, round: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RunStore:
    """A run's directory: its tickets, the weights that it rewinds to, and its last epoch, where `train` can resume.

    Takes up what an earlier call left in the directory. What an epoch left on a GPU is written while the next one is
    trained; `settle` waits for it.

    Raises:
        ValueError: another network's, or a run's with other settings.
        TypeError: a network that can't be stored.
    """

    def __init__(self, directory: Path, model: nn.Module, layout: Layout, settings: dict[str, Any]) -> None:
        self.directory = directory
        self.model = model
        self.layout = layout
        self.settings = settings
        for name, tensor in model.state_dict().items():
            check_tensor(tensor, repr(name))
        self._aside = _Aside()
        self.tickets = self._opened()
        self._check_same_network()
        self._check_same_settings()

    def _opened(self) -> TicketStore:
        try:
            return TicketStore.open(self.directory)
        except FileNotFoundError:
            if taken := [name for name in (REWIND, CHECKPOINT) if os.path.lexists(self.directory / name)]:
                raise ValueError(
                    f"{self.directory / taken[0]} is of no run here, and would be replaced: use another directory"
                ) from None
            tickets = TicketStore(self.directory, self.layout)
            tickets.commit(self.settings)
            return tickets

    def _check_same_network(self) -> None:
        stored = self.tickets.layout
        if stored == self.layout:
            return
        changed = sorted(set(stored.prunable) ^ set(self.layout.prunable))
        if changed and not stored.difference(self.model.state_dict()):
            pruned = "pruned" if changed[0] in stored.prunable else "not pruned"
            raise ValueError(
                f"{self.directory} holds a run with another `prunable`: {changed[0]!r} is {pruned} there; use another "
                "directory, or go on with prunable=lpk.Tickets.load(store).layout.prunable"
            )
        raise ValueError(f"{self.directory} holds tickets of another network")

    def _check_same_settings(self) -> None:
        """More rounds are possible, and are stored; not with `density`, by which they make other ones of the first."""
        stored, now = {**EARLIER, **self.tickets.metadata}, self.settings
        for name, value in now.items():
            before = stored.get(name)
            fits = before == value
            if name == "rounds" and now["density"] is None:
                fits = isinstance(before, int) and before <= value
            elif name == "fraction":
                fits = per_round(before, stored["rounds"]) == per_round(value, now["rounds"])[: stored["rounds"]]
            if not fits:
                raise ValueError(
                    f"{self.directory} holds a run with {name}={before}, not {value}; use another directory"
                )
        if self.tickets.metadata != now:
            self.tickets.commit(now)

    def finished(self) -> list[Ticket]:
        return [self.tickets.read(i) for i in range(len(self.tickets.listed))]

    def append(self, ticket: Ticket) -> None:
        self.settle()
        self.tickets.append(ticket)
        self.tickets.commit(self.settings)

    def read_rewind(self) -> StateDict | None:
        """The state dict that every round restarts from; None where no round has come so far."""
        path = self.directory / REWIND
        if path.exists():
            return read_checkpoint(path, self.layout, {"epoch": whole})[0]
        if self.tickets.listed:
            raise files.FileDamaged(f"{path} is missing: the run cannot go on")
        return None

    def save_rewind(self) -> None:
        self._save(REWIND, {"epoch": self.settings["rewind"]})

    def check_storable(self, train: Resumable) -> None:
        """Raises TypeError where what `train` has to know can't be stored; after an epoch it would be too late."""
        if self.settings["epochs"] == 1:
            return
        try:
            state = train.state_dict()
        except Exception:  # it may have none before its first epoch
            return
        nested.taken_apart(state, {}, "train.state_dict()")

    def save_epoch(self, round_: int, epoch: int, train: Resumable) -> None:
        """Stores what is needed to go on with this epoch, from a GPU in the background."""
        self._save(CHECKPOINT, {"round": round_, "epoch": epoch}, train)

    def settle(self) -> None:
        """Waits until everything is stored. Raises what prevents it."""
        self._aside.wait()

    def read_epoch(self, round_: int) -> tuple[int, StateDict, Any] | None:
        """The checkpoint of this round: the epoch to go on with, the network, and what `train` has to know then."""
        path = self.directory / CHECKPOINT
        if not path.exists():
            return None
        state, metadata = read_checkpoint(path, self.layout, {"round": whole, "epoch": whole, "train": schema.anything})
        return None if metadata["round"] != round_ else (int(metadata["epoch"]), state, metadata["train"])

    def close(self) -> None:
        self.settle()
        (self.directory / CHECKPOINT).unlink(missing_ok=True)

    def _save(self, name: str, metadata: Mapping[str, Any], train: Resumable | None = None) -> None:
        """Stores the network and, where it is given, what `train` has to know to go on."""
        state = {k: v for k, v in self.model.state_dict().items() if k not in self.layout.aliases}
        tensors = {f"model.{k}": v for k, v in state.items()}
        if train is not None:
            own: StateDict = {}
            metadata = {**metadata, "train": nested.taken_apart(train.state_dict(), own, "train.state_dict()")}
            tensors |= {f"train.{k}": v for k, v in own.items()}
        self.settle()
        if not _on_a_device(tensors):
            files.save_tensors(self.directory / name, tensors, metadata)
            return
        copies = {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}
        self._aside.call(lambda: files.save_tensors(self.directory / name, copies, metadata))


def _on_a_device(tensors: StateDict) -> bool:
    return any(tensor.device.type != "cpu" for tensor in tensors.values())


class _Aside:
    """Calls one function at a time in a thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, "lpk-checkpoint")  # starts one when it is needed
        self._called: Future[object] | None = None

    def call(self, function: Callable[[], object]) -> None:
        self.wait()
        self._called = self._threads.submit(function)

    def wait(self) -> None:
        """Raises what the function raised."""
        called, self._called = self._called, None
        if called is not None:
            called.result()


def read_checkpoint(path: Path, layout: Layout, description: Any) -> tuple[StateDict, dict[str, Any]]:
    """A network that `RunStore` saved, and what the file says beside it, which `description` checks."""
    tensors, metadata = files.load_tensors(path, description)
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    if problem := layout.difference(state):
        raise files.FileDamaged(f"{path} does not fit the network: {problem}")
    state |= {alias: state[name] for alias, name in layout.aliases.items()}
    own = {k.removeprefix("train."): v for k, v in tensors.items() if k.startswith("train.")}
    try:
        metadata["train"] = nested.put_together(metadata.get("train"), own)
    except ValueError as error:
        raise files.FileDamaged(f"{path} is damaged: in the state of train, {error}") from error
    return state, metadata
