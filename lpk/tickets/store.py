"""A directory of tickets that grows round by round.

It holds `tickets.json`, which lists them, and one safetensors file for each, which holds the state dict under its own
names and the packed mask as `lpk.mask`. Nothing is unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lpk import schema
from lpk.networks.flat import LAYOUT, Flat, Layout, StateDict
from lpk.schema import string, whole
from lpk.tickets import files
from lpk.tickets.ticket import Ticket

MANIFEST = "tickets.json"
MASK = "lpk.mask"
TICKET_FILE = re.compile(r"round-\d+-[0-9a-f]{8,64}\.safetensors")
ATTEMPTS = 20  # to read a directory that others write to: each has to lose a race against a whole set of tickets

TICKET = {"round": whole, "keep": whole}  # the metadata of a ticket's file
CONTENT = {
    "format": whole,
    "layout": LAYOUT,
    "metadata": schema.table,
    "tickets": [{"file": string, "digest": string, "keep": whole}],
    "replaced?": [string],
}

T = TypeVar("T")


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
