"""The tickets of one network: those of a run of IMP, or of networks that others pruned."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from torch import Tensor, nn

from lpk.networks.flat import Layout
from lpk.tickets import checkpoints, files, state_dicts
from lpk.tickets.adoption import tickets_of
from lpk.tickets.store import MANIFEST, TicketStore
from lpk.tickets.ticket import Ticket, check_mixable


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
        check_mixable([f"ticket {i}" for i in range(len(self))], self._tickets)

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
        densities = f"densities {self[0].density:.4f} to {self[-1].density:.4f}"
        return f"Tickets({len(self)}, {densities}, {self.layout.n:,} prunable weights)"

    def _repr_html_(self) -> str:
        """For notebooks: the rounds."""
        from lpk import page

        lines = [(ticket.round, f"{ticket.keep:,}", f"{page.percent(ticket.density)}%") for ticket in self]
        rounds = page.table(["round", "weights left", "density"], lines)
        return page.element("div", page.element("p", repr(self)), rounds)

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

        Raises FileNotFoundError, or lpk.FileDamaged naming the file that is truncated or altered.
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
        return cls(tickets_of(names, state_dicts, masks, model, prunable))

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

        Raises FileNotFoundError, lpk.FileDamaged, or ValueError where the networks do not fit one another or have
        weights that an earlier one has pruned, or a file of a folder may be none of them; each names the file.
        """
        given = [files.absolute(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        for path in given:
            if files.exists(path / MANIFEST):
                raise ValueError(f"{path} is lpk's own: lpk.Tickets.load reads it")
        found = [checkpoint for path in given for checkpoint in checkpoints.find(path)]
        names = [str(checkpoint.path) for checkpoint in found]
        masks = [None if c.masks is None else state_dicts.load(c.masks) for c in found]
        tickets = tickets_of(names, [state_dicts.load(c.path, key) for c in found], masks, model, prunable)
        for (a, earlier), (b, later) in itertools.pairwise(zip(names, tickets, strict=True)):
            if back := int((later.mask & ~earlier.mask).count_nonzero()):
                raise ValueError(
                    f"{b} has {back} weights that {a} has pruned; tickets come dense to sparse, each pruned from the "
                    "one before"
                )
        return cls(tickets)
