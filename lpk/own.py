"""Tickets without a run's manifest: a store of lpk.imp, an import without a preset, a folder of checkpoints.

What network they are of, and its data, say functions of the user's own: see `lpk.functions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lpk import functions, schema, terminal
from lpk.directory import MANIFEST, Directory, check_whole, locked_by_first, pooled_path
from lpk.networks.flat import StateDict
from lpk.reporting.results import check_free
from lpk.run import Run, device_of, no_tickets, read_manifest
from lpk.tickets import checkpoints, files
from lpk.tickets.pooled import Pooled
from lpk.tickets.store import MANIFEST as TICKETS
from lpk.tickets.store import TicketStore
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from lpk.tickets.versions import versions

PARTS = ("validation", "calibration", "test")
BATCH_SIZE = 128  # in which a Dataset is read
SEED = 0  # of what the user's functions draw, so that a split is the same for each command


@dataclass(frozen=True)
class Own(Directory):
    """An open directory of tickets, with the names of the functions that make their network and its data."""

    model_function: str | None
    data_function: str | None
    device: torch.device

    batch_size = None  # each loader's own

    @property
    def title(self) -> str:
        return f"{self.path.name}, {type(self.model()).__name__}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """How to repeat what is made of it."""
        store = store_directory(self.path)
        return {
            "command": terminal.command(),
            "tickets": TicketStore.open(store).metadata if store else {},
            "device": str(self.device),
            "versions": versions(),
        }

    @property
    def scope(self) -> str:
        """That of pools, by what lpk.imp was asked for."""
        asked: Mapping[str, Any] = self.manifest["tickets"]
        return "layer" if asked.get("scope") == "layer" or asked.get("floor") else "global"

    def model(self) -> nn.Module:
        """Raises ValueError where no function was named, or what it returns is no network."""
        if self.model_function is None:
            raise ValueError(self._missing("network"))
        torch.manual_seed(SEED)
        model = functions.call(self.model_function, "--model")
        if not isinstance(model, nn.Module):
            raise ValueError(f"--model {self.model_function} returned a {type(model).__name__}; a module is needed")
        return model.to(self.device)

    @cached_property
    def _data(self) -> Mapping[str, Any]:
        if self.data_function is None:
            raise ValueError(self._missing("data"))
        torch.manual_seed(SEED)
        found = functions.call(self.data_function, "--data")
        parts = found if isinstance(found, Mapping) else {part: getattr(found, part, None) for part in PARTS}
        parts = {name: part for name, part in parts.items() if part is not None}
        if not parts.keys() & {*PARTS}:
            listed = ", ".join(map(schema.shortened, parts)) if isinstance(found, Mapping) else ""
            raise ValueError(
                f"--data {self.data_function} returned a {type(found).__name__}{f' of {listed}' if listed else ''}; "
                f"a dict or an object with {', '.join(PARTS)} is needed"
            )
        return parts

    def samples(self, part: str) -> Any:
        """The samples of `part`, one of PARTS, as lpk.pool and lpk.evaluate take them, or a function that scores.

        None where there are no calibration samples. Raises ValueError where others are missing.
        """
        found: Any = self._data.get(part)
        if found is None and part != "calibration":
            there = ", ".join(name for name in PARTS if name in self._data)
            raise ValueError(f"--data {self.data_function} has no {part} samples: there are {there}")
        is_dataset = isinstance(found, Dataset) and not isinstance(found, IterableDataset)
        return DataLoader(found, batch_size=BATCH_SIZE) if is_dataset else found

    def sample_shape(self) -> torch.Size:
        """Of one sample."""
        return self.inputs().shape[1:]

    def inputs(self) -> Tensor:
        """A batch of one sample or more, of whichever samples there are."""
        for part in PARTS:
            found = self.samples(part) if part in self._data else None
            if found is None or callable(found):
                continue
            first = found if isinstance(found, Tensor) else next(iter(found), None)
            while isinstance(first, tuple | list) and first:
                first = first[0]
            if isinstance(first, Tensor) and len(first):
                return first
        raise ValueError(f"--data {self.data_function} has no samples to tell what the inputs are by")

    def _missing(self, what: str) -> str:
        """The error of an option that was left out, with the command that has it."""
        given = {"--model": self.model_function, "--data": self.data_function}
        options = " ".join(f"{name} module:function" for name, value in given.items() if value is None)
        command = f"{terminal.command()} {options}"
        return f"{self.path} has no {MANIFEST}, which would name its {what}: `{command}` does"

    def tickets(self) -> Tickets:
        """Of a store, or of checkpoints under the names that the network has."""
        return _tickets(self.path, self.model() if self.model_function else None)


Subject = Run | Own


def opened(
    path: Path,
    *,
    model: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> AbstractContextManager[Subject]:
    """Opens and locks a run, or any other directory of tickets.

    Args:
        model, data: functions that make the network and its data; of a run, where its data set lies. A run has no model
            but its preset's.
        seed: where given, must be the run's.

    Raises FileNotFoundError, ValueError saying what was found and what is needed.
    """
    path = files.absolute(path)
    if not files.exists(path / MANIFEST):
        return _own(path, model=model, data=data, seed=seed, device=device)
    check_preset(path, model)
    root = None if data is None else Path(data).expanduser()
    if root is not None and not root.exists() and ":" in str(root):
        raise ValueError(f"{path} is a run, whose preset names the data set: --data is the folder that it lies in")
    return Run.open(path, seed=seed, root=root, device=device)


@contextmanager
def _own(path: Path, *, model: str | None, data: str | None, seed: int | None, device: str | None) -> Iterator[Own]:
    check_tickets(path)
    check_whole(path)
    if seed is not None:
        raise ValueError(f"{path} is no run directory, and has no seed that --seed could be checked against")
    for name, given in (("--model", model), ("--data", data)):
        if given is not None and ":" not in given:
            raise ValueError(f"{name} is {given!r}, and {path} is no run directory: {functions.FORM} is needed")
    with locked_by_first(path):
        check_free(path)
        yield Own(path, model, data, device_of(device))


def check_preset(path: Path, model: str | None) -> None:
    """Raises ValueError where a run, which has a network by its preset, is given another."""
    if model is not None:
        name = read_manifest(path)["preset"].get("name")
        raise ValueError(f"{path} is a run with preset {name}, which names the network: leave --model out")


def store_directory(path: Path) -> Path | None:
    """Where the tickets.json is of a store, or of a directory that has one in tickets/."""
    return next((each for each in (path, path / "tickets") if files.exists(each / TICKETS)), None)


def check_tickets(path: Path) -> None:
    """Raises FileNotFoundError or ValueError where a directory is of no tickets, or one of a run's own."""
    if path.name == "tickets" and files.exists(path.parent / MANIFEST):
        raise ValueError(f"{path} holds the tickets of the run {path.parent}: name that")
    problem = "it does not exist" if not files.exists(path) else None if path.is_dir() else "it is a file"
    if problem is None and store_directory(path) is None:
        try:
            checkpoints.find(path)
        except FileNotFoundError as error:
            problem = f"it has no {MANIFEST} and no {TICKETS}, and {error}" if _has_files(path) else "it has neither"
    if problem is not None:
        raise FileNotFoundError(
            f"{path} is not a run directory, and holds no tickets: {problem}; `lpk imp` makes a run, or `lpk import`, "
            "and a store of lpk.imp or a folder of checkpoints will do"
        )


def _has_files(path: Path) -> bool:
    return any(each.suffix in checkpoints.SUFFIXES or each.is_dir() for each in path.iterdir())


def _tickets(path: Path, model: nn.Module | None) -> Tickets:
    store = store_directory(path)
    return Tickets.from_checkpoints(path, model=model) if store is None else Tickets.load(store)


def network(path: Path, round_: int, method: str, model: str | None = None) -> tuple[StateDict, StateDict]:
    """State dict and masks of one of a directory's networks, read without its data.

    Args:
        path: a run directory, or another one of tickets.
        method: that of the pool; "ticket": the ticket itself.
        model: the function that makes the network, whose names checkpoints may lack.

    Raises FileNotFoundError saying which command makes it, ValueError, or lpk.FileDamaged.
    """
    path = files.absolute(path)
    is_run = files.exists(path / MANIFEST)
    if not is_run:
        check_tickets(path)
    if method == "ticket":
        ticket = _ticket(path, round_, None if is_run else model)
        return ticket.state_dict, ticket.masks
    file = pooled_path(path, method, round_)
    if not files.exists(file):
        make = f"lpk pool {path} --target {round_} --method {method}"
        make += "" if is_run else f" --model {model or 'module:function'} --data module:function"
        raise FileNotFoundError(f"{path} has no pooled network of round {round_} by {method}; `{make}` makes it")
    pooled = Pooled.load(file)
    return pooled.state_dict, pooled.masks


def _ticket(path: Path, round_: int, model: str | None) -> Ticket:
    store = store_directory(path)
    if store is None and not files.exists(path / MANIFEST):
        built = None if model is None else Own(path, model, None, torch.device("cpu")).model()
        tickets = _tickets(path, built)
        if not 0 <= round_ < len(tickets):
            raise ValueError(f"{path} has no ticket of round {round_}; it has {len(tickets)}, from round 0 on")
        return tickets[round_]
    try:
        return TicketStore.reading(store or path / "tickets", lambda store: store.read(round_))
    except FileNotFoundError as error:
        if not files.exists(path / MANIFEST):
            raise
        raise no_tickets(path, read_manifest(path), error) from error
