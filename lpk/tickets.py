"""Tickets: the trained subnetworks of a run of IMP, and their files.

A run's tickets are a directory: `tickets.json`, which lists them, and one safetensors file for each, which holds the
state dict under its own names and the packed mask as `lpk.mask`. Nothing is unpickled.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from lpk import files, importers, schema
from lpk.flat import LAYOUT, Flat, Layout, StateDict, unwrapped
from lpk.schema import string, whole
from lpk.states import state_names

MANIFEST = "tickets.json"
MASK = "lpk.mask"
TICKET_FILE = re.compile(r"round-\d+-[0-9a-f]{8,64}\.safetensors")
ATTEMPTS = 20  # to read a directory that others write to: each has to lose a race against a whole set of tickets

T = TypeVar("T")

TICKET = {"round": whole, "keep": whole}  # the metadata of a ticket's file
CONTENT = {
    "format": whole,
    "layout": LAYOUT,
    "metadata": schema.table,
    "tickets": [{"file": string, "digest": string, "keep": whole}],
    "replaced?": [string],
}


@dataclass(frozen=True, eq=False)
class Ticket:
    """A trained subnetwork: its weights and its mask.

    Attributes:
        round: the IMP round it came from, 0 = dense.
        layout: where its entries stand in the flat vectors.
        flat: its values; weights outside the mask are 0.
        mask: bool [n].
    """

    round: int
    layout: Layout
    flat: Flat
    mask: Tensor

    @classmethod
    def of(cls, round: int, layout: Layout, state: Mapping[str, Tensor], mask: Tensor) -> Ticket:
        """The ticket of a state dict that fits `layout`; weights outside the mask become 0."""
        flat = layout.flatten(state)
        flat.weights.masked_fill_(~mask, 0.0)
        return cls(round, layout, flat, mask)

    @property
    def keep(self) -> int:
        """How many weights remain."""
        return int(self.mask.count_nonzero())

    @property
    def density(self) -> float:
        """Weights remaining / prunable weights."""
        return self.keep / self.layout.n

    @property
    def state_dict(self) -> StateDict:
        """The whole network; pruned weights are 0."""
        return self.layout.unflatten(self.flat)

    @property
    def masks(self) -> StateDict:
        """One bool tensor for each prunable entry."""
        return self.layout.masks(self.mask)

    def to_prune(self, model: nn.Module) -> None:
        """Writes the ticket into a model, which torch.nn.utils.prune then keeps pruned; see Layout.to_prune."""
        self.layout.to_prune(model, self.flat, self.mask)

    def __repr__(self) -> str:
        return f"Ticket(round={self.round}, density={self.density:.4f}, keep={self.keep})"


class Tickets(Sequence[Ticket]):
    """Tickets of one network, ordered by round; index i is round i. A slice has its rounds counted anew.

    Buffers may hold what is infinite or NaN, as a causal mask does, where all tickets have the same there, and so may
    complex ones; all else is real and finite.
    """

    def __init__(self, tickets: Iterable[Ticket]) -> None:
        self._tickets = tuple(tickets)
        if not self._tickets:
            raise ValueError("no tickets: at least one is needed")
        for i, ticket in enumerate(self._tickets):
            if ticket.round != i:
                raise ValueError(f"ticket {i} is of round {ticket.round}; the rounds must be 0, 1, 2, …")
            if ticket.layout != self.layout:
                raise ValueError(f"ticket {i} is of another network than ticket 0")
            if i > 0 and ticket.keep > self._tickets[i - 1].keep:
                raise ValueError(
                    f"ticket {i} has density {ticket.density:.4f} after {self._tickets[i - 1].density:.4f}; "
                    "tickets come in the order of their rounds, dense to sparse"
                )
        _check_mixable([f"ticket {i}" for i in range(len(self))], self._tickets)

    @classmethod
    def counted(cls, tickets: Iterable[Ticket]) -> Tickets:
        """These tickets, dense to sparse, as rounds 0, 1, 2, …, whatever rounds they came from."""
        return cls(replace(ticket, round=i) for i, ticket in enumerate(tickets))

    @property
    def layout(self) -> Layout:
        return self._tickets[0].layout

    @overload
    def __getitem__(self, index: int) -> Ticket: ...
    @overload
    def __getitem__(self, index: slice) -> Tickets: ...
    def __getitem__(self, index: int | slice) -> Ticket | Tickets:
        return self.counted(self._tickets[index]) if isinstance(index, slice) else self._tickets[index]

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __repr__(self) -> str:
        return f"Tickets({len(self)}, densities {self[0].density:.4f} to {self[-1].density:.4f})"

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes the directory `path`; an older set of tickets there stays whole until the new one is complete.

        Removed then are the files that the older set's tickets.json lists, and no others.

        Raises ValueError where a tickets.json is there that is not lpk's, RuntimeError where another process writes
        there.
        """
        directory = files.absolute(path)
        with files.locked(directory):
            store = TicketStore(directory, self.layout)
            store.earlier()  # raises before anything is written
            for ticket in self:
                store.append(ticket)
            store.commit({})

    @classmethod
    def load(cls, path: str | Path) -> Tickets:
        """Reads a directory of tickets, or a run directory that has one.

        Beside a process that saves other tickets there, these are the old ones or the new ones.

        Raises FileNotFoundError, or lpk.files.FileDamaged naming the file that is truncated or altered.
        """
        directory = files.absolute(path)
        if not files.exists(directory / MANIFEST) and files.exists(directory / "tickets" / MANIFEST):
            directory = directory / "tickets"

        def read(store: TicketStore) -> Tickets:
            if not store.listed:
                raise FileNotFoundError(f"{directory} has no finished ticket yet")
            tickets = [store.read(i) for i in range(len(store.listed))]
            try:
                return cls(tickets)
            except ValueError as error:
                raise files.FileDamaged(f"{directory / MANIFEST} is damaged: {error}") from error

        return TicketStore.reading(directory, read)

    # --- other people's networks --------------------------------------------------------------------------------------

    @classmethod
    def from_state_dicts(
        cls,
        state_dicts: Sequence[Mapping[str, Tensor] | nn.Module],
        masks: Sequence[Mapping[str, Tensor] | None] | None = None,
        *,
        model: nn.Module | None = None,
        prunable: Collection[str] | None = None,
    ) -> Tickets:
        """Tickets from state dicts or modules, dense to sparse.

        Args:
            state_dicts: one for each round; the prefixes `module.` and `_orig_mod.` are dropped.
            masks: for each, {name: bool tensor} of the prunable entries (None, or a missing name: nothing pruned).
                Without them: the pairs weight_orig/weight_mask of torch.nn.utils.prune, else the zeros.
            model: the network that they belong to, if they are to have its names: a prefix `model.` and a layer
                `normalize` that it does not have are then dropped, and what it ties is tied, whichever of the names the
                state dicts hold. Its parameters must be finite.
            prunable: where masks come from the zeros, the names of the prunable tensors. None guesses them: the
                floating-point tensors of two or more dimensions that have a zero in some ticket. Given the model, its
                buffers don't count, nor do the rows of embeddings at padding_idx.

        Raises ValueError naming the ticket and the entry that does not match the others or the model.
        """
        names = [f"ticket {i}" for i in range(len(state_dicts))]
        return cls(_tickets(names, state_dicts, masks, model, prunable))

    @classmethod
    def from_checkpoints(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        model: nn.Module | None = None,
        prunable: Collection[str] | None = None,
        key: str | None = None,
    ) -> Tickets:
        """Tickets from files that others wrote; nothing is unpickled.

        Args:
            paths: safetensors or PyTorch files, dense to sparse; a folder of them, whose names differ in numbers alone,
                in natural order; a run of the paper's public code; or one of OpenLTH. A PyTorch file holds a state
                dict, or one under the key `state_dict`, `model_state_dict` or `model`, or under any other key if it is
                the only one. Masks: OpenLTH's mask.pth, else as in from_state_dicts.
            model, prunable: as in from_state_dicts.
            key: of the state dict in each PyTorch file, with dots between the keys of dicts in dicts.

        Raises FileNotFoundError, lpk.files.FileDamaged, or ValueError where the networks do not fit one another or have
        weights that an earlier one has pruned, or a file of a folder may be none of them; each names the file.
        """
        given = [files.absolute(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        for path in given:
            if files.exists(path / MANIFEST):
                raise ValueError(f"{path} is lpk's own: lpk.Tickets.load reads it")
        found = [checkpoint for path in given for checkpoint in importers.find(path)]
        names = [str(checkpoint.path) for checkpoint in found]
        masks = [None if c.masks is None else importers.load(c.masks) for c in found]
        tickets = _tickets(names, [importers.load(c.path, key) for c in found], masks, model, prunable)
        for (a, earlier), (b, later) in itertools.pairwise(zip(names, tickets, strict=True)):
            if back := int((later.mask & ~earlier.mask).count_nonzero()):
                raise ValueError(
                    f"{b} has {back} weights that {a} has pruned; tickets come dense to sparse, each pruned from the "
                    "one before"
                )
        return cls(tickets)


class TicketStore:
    """A directory of tickets that grows round by round. `commit` makes visible what was appended."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory = directory
        self.layout = layout
        self.listed: list[dict[str, Any]] = []
        self.replaced: list[str] = []  # files of earlier sets that may still be there
        self.metadata: dict[str, Any] = {}

    @classmethod
    def open(cls, directory: Path) -> TicketStore:
        path = directory / MANIFEST
        try:
            manifest = files.read_json(path, CONTENT)
        except FileNotFoundError:
            raise FileNotFoundError(f"{directory} has no {MANIFEST}: it is not a directory of tickets") from None
        try:
            store = cls(directory, Layout.from_json(manifest["layout"]))
        except ValueError as error:
            raise files.FileDamaged(f"{path} is damaged: {error}") from error
        store.listed = [{"file": t["file"], "digest": t["digest"], "keep": t["keep"]} for t in manifest["tickets"]]
        store.replaced = manifest.get("replaced", [])
        store.metadata = manifest["metadata"]
        return store

    @classmethod
    def reading(cls, directory: Path, read: Callable[[TicketStore], T]) -> T:
        """read(store), once more where another process put other tickets into the directory meanwhile."""
        for _ in range(ATTEMPTS):
            before = _version(directory / MANIFEST)
            try:
                return read(cls.open(directory))
            except (FileNotFoundError, files.FileDamaged):
                if _version(directory / MANIFEST) == before:
                    raise
        raise RuntimeError(f"{directory} changed {ATTEMPTS} times while it was read; read it when it is at rest")

    def append(self, ticket: Ticket) -> None:
        """Writes the ticket's file; its name carries the digest, so that no older file is overwritten."""
        tensors = packed(self.layout, ticket.state_dict, ticket.mask)
        content, digest = files.sealed(tensors, {"round": ticket.round, "keep": ticket.keep})
        name = self._free_name(ticket.round, digest)
        files.write_bytes(self.directory / name, content)
        self.listed.append({"file": name, "digest": digest, "keep": ticket.keep})

    def _free_name(self, round: int, seal: str) -> str:
        """As much of the digest as no other content has for its name."""
        for length in (8, 16, 32, 64):
            name = f"round-{round:02d}-{seal[:length]}.safetensors"
            if not os.path.lexists(self.directory / name):
                return name
            with suppress(FileNotFoundError, files.FileDamaged):
                files.load_tensors(self.directory / name, digest=seal)
                return name
        raise files.FileDamaged(f"{self.directory / name} is not the ticket that its name says; remove it")

    def earlier(self) -> list[str]:
        """The tickets' files, and no others, that the manifest lists which is in the directory now.

        Raises ValueError where it is not lpk's own, or damaged: it would be replaced.
        """
        try:
            store = TicketStore.open(self.directory)
        except FileNotFoundError:
            return []
        except files.FileDamaged as error:
            raise ValueError(f"{error}; remove it, or use another directory") from error
        names = [*(listed["file"] for listed in store.listed), *store.replaced]
        return [name for name in names if isinstance(name, str) and TICKET_FILE.fullmatch(name)]

    def commit(self, metadata: Mapping[str, Any]) -> None:
        """Replaces the manifest; the files that only the earlier one lists are then removed."""
        self.metadata = dict(metadata)
        named = {listed["file"] for listed in self.listed}
        paths = {name: self.directory / name for name in self.earlier() if name not in named}
        self.replaced = [name for name, path in paths.items() if os.path.lexists(path)]
        manifest = {
            "format": files.FORMAT,
            "layout": self.layout.to_json(),
            "metadata": self.metadata,
            "tickets": self.listed,
        }
        if self.replaced:  # so that the next commit removes them should this one be killed
            manifest["replaced"] = self.replaced
        files.write_json(self.directory / MANIFEST, manifest)
        for name in self.replaced:
            paths[name].unlink(missing_ok=True)

    def read(self, round: int) -> Ticket:
        if not 0 <= round < len(self.listed):
            raise ValueError(
                f"{self.directory} has no ticket of round {round}; it has {len(self.listed)}, from round 0 on"
            )
        listed = self.listed[round]
        path = files.inside(self.directory, listed["file"])
        tensors, metadata = files.load_tensors(path, TICKET, digest=listed["digest"])
        if metadata["round"] != round:
            raise files.FileDamaged(f"{path} is of round {metadata['round']}; {MANIFEST} lists it as round {round}")
        try:
            ticket = Ticket(round, self.layout, *unpacked(self.layout, tensors))
        except ValueError as error:
            raise files.FileDamaged(f"{path} does not fit {MANIFEST}: {error}") from error
        if ticket.keep != listed["keep"]:
            raise files.FileDamaged(f"{path} keeps {ticket.keep} weights; {MANIFEST} says {listed['keep']}")
        return ticket


def packed(layout: Layout, state: Mapping[str, Tensor], mask: Tensor) -> StateDict:
    """What stands in the file of a ticket: the state dict, tied tensors once, and the mask as `lpk.mask`."""
    tensors = {name: tensor for name, tensor in state.items() if name not in layout.aliases}
    return {**tensors, MASK: torch.from_numpy(np.packbits(mask.numpy()))}


def unpacked(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[Flat, Tensor]:
    """The values and the mask [n] in what `packed` made. Raises ValueError where that is of another layout."""
    state = {name: tensor for name, tensor in tensors.items() if name != MASK}
    if problem := layout.difference(state):
        raise ValueError(problem)
    bits = tensors.get(MASK)
    if bits is None or bits.dtype != torch.uint8 or bits.shape != (-(-layout.n // 8),):
        raise ValueError(f"{MASK} is not a mask of {layout.n} weights")
    every = np.unpackbits(bits.numpy())
    mask = torch.from_numpy(every[: layout.n]).bool()
    flat = layout.flatten(state)
    if every[layout.n :].any() or bool(flat.weights.masked_fill(mask, 0.0).any()):
        raise ValueError(f"{MASK} belongs to other weights: one that it prunes is not zero")
    return flat, mask


def _version(path: Path) -> tuple[int, int] | None:
    """What a file has of its own until it is replaced."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


# --- other people's networks ------------------------------------------------------------------------------------------


def _tickets(
    names: Sequence[str],
    state_dicts: Sequence[Mapping[str, Tensor] | nn.Module],
    masks: Sequence[Mapping[str, Tensor] | None] | None,
    model: nn.Module | None,
    prunable: Collection[str] | None,
) -> list[Ticket]:
    """One ticket for each state dict; errors call them by `names`."""
    if not state_dicts:
        raise ValueError("no state dicts: at least one is needed")
    if masks is not None and len(masks) != len(state_dicts):
        raise ValueError(f"{len(state_dicts)} state dicts but {len(masks)} masks; one for each is needed")
    networks = []
    for name, state, given in zip(names, state_dicts, masks or [None] * len(names), strict=True):
        if not isinstance(state, Mapping | nn.Module):
            raise TypeError(
                f"{name} is a {type(state).__name__}; a state dict or a module is needed. "
                "lpk.Tickets.from_checkpoints reads files"
            )
        state = state.state_dict() if isinstance(state, nn.Module) else state
        try:
            importers.check_plain(state)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        networks.append(importers.network(state, given))
        if MASK in networks[-1].state:
            raise ValueError(f"{name} is lpk's own: lpk.Tickets.load reads its directory, lpk.Pooled.load a pooled one")
        _check_masks(name, *networks[-1])
    own = None
    if model is not None:
        model = unwrapped(model)
        own = importers.network(model.state_dict()).state
        networks = [_named_as(own, name, network) for name, network in zip(names, networks, strict=True)]
    states, found = [network.state for network in networks], [network.masks for network in networks]
    if not any(found):
        found = importers.masks_from_zeros(states, model=model, prunable=prunable)
    elif prunable is not None:
        raise ValueError("`prunable` says whose zeros are pruned weights, but the tickets have masks")
    chosen = {name for given in found for name in given}.union(prunable or ())
    if not chosen:
        raise ValueError(
            f"no ticket has a zero weight or a mask ({names[0]} to {names[-1]}): from_state_dicts takes `masks`, "
            "{name: bool tensor} for each, or `prunable`, the names of what may be pruned"
        )
    try:
        layout = Layout.of(states[0], sorted(chosen))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{names[0]}: {error}") from error
    if own is not None and (problem := layout.difference(own)):
        raise ValueError(f"the model is another network than {names[0]}: in the model {problem}")
    tickets = [_ticket(i, names, layout, *network) for i, network in enumerate(zip(states, found, strict=True))]
    _check_mixable(names, tickets)
    if model is not None:
        parameters = set(state_names(model).values())
        for name, ticket in zip(names, tickets, strict=True):
            try:
                layout.check_finite(ticket.flat, parameters)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return tickets


def _check_mixable(names: Sequence[str], tickets: Sequence[Ticket]) -> None:
    """Raises ValueError where a ticket differs from the first one in what can't be interpolated; called by `names`."""
    for i in range(1, len(tickets)):
        for one, other in ((i, 0), (0, i)):
            if problem := tickets[one].layout.contradiction(tickets[one].flat, tickets[other].flat):
                raise ValueError(
                    f"{names[one]}: {problem} as in {names[other]}; infinities, NaN, complex numbers and shapes must "
                    "be the same in all tickets"
                )


def _named_as(own: StateDict, name: str, network: importers.Network) -> importers.Network:
    try:
        return importers.named_as(own, network)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_masks(ticket: str, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in state:
            raise ValueError(f"{ticket}: the mask of {name!r} belongs to no entry of the state dict")
        if mask.shape != state[name].shape:
            raise ValueError(
                f"{ticket}: the mask of {name!r} has shape {tuple(mask.shape)}, not {tuple(state[name].shape)}"
            )
        if mask.dtype != torch.bool and not torch.all((mask == 0) | (mask == 1)):
            raise ValueError(f"{ticket}: the mask of {name!r} holds other values than 0 and 1")


def _ticket(
    i: int, names: Sequence[str], layout: Layout, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Ticket:
    if problem := layout.difference(state):
        raise ValueError(f"{names[i]} does not match {names[0]}: {problem}")
    mask = torch.ones(layout.n, dtype=torch.bool, device="cpu")
    try:
        masks = importers.tie(masks, layout.aliases)
        for entry in layout.weights:
            if entry.name in masks:
                mask[entry.span] = masks[entry.name].reshape(-1).to(mask)
        return Ticket.of(i, layout, state, mask)
    except ValueError as error:
        raise ValueError(f"{names[i]}: {error}") from error
