"""A run of lpk.imp in several processes, each with a copy of the network: rank 0 stores, all hold the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lpk.distributed import Ranks, digest
from lpk.networks.flat import StateDict
from lpk.pruning.precautions import load
from lpk.pruning.resuming import Resumable, RunStore
from lpk.tickets.ticket import Ticket

INSTEAD = "or call it in lpk.distributed.alone(), where each process has a run of its own"


class SharedStore:
    """The store that rank 0 has; what it reads goes to all of them.

    make: opens it, on rank 0 alone; what it raises ends the others, too.
    """

    def __init__(self, ranks: Ranks, make: Callable[[], RunStore]) -> None:
        self._ranks = ranks
        self._own = make() if ranks.first else None

    def finished(self) -> list[Ticket]:
        own = [] if self._own is None else self._own.finished()
        count = self._ranks.share(len(own))
        return [self._ranks.share(own[i] if self._ranks.first else None) for i in range(count)]  # type: ignore[misc]

    def append(self, ticket: Ticket) -> None:
        """Returns when it is stored."""
        if self._own is not None:
            self._own.append(ticket)
        self._ranks.share(None)

    def read_rewind(self) -> StateDict | None:
        return self._ranks.share(None if self._own is None else self._own.read_rewind())

    def save_rewind(self) -> None:
        if self._own is not None:
            self._own.save_rewind()

    def check_storable(self, train: Resumable) -> None:
        if self._own is not None:
            self._own.check_storable(train)

    def read_epoch(self, round_: int) -> tuple[int, StateDict, Any] | None:
        return self._ranks.share(None if self._own is None else self._own.read_epoch(round_))

    def save_epoch(self, round_: int, epoch: int, train: Resumable) -> None:
        if self._own is not None:
            self._own.save_epoch(round_, epoch, train)

    def settle(self) -> None:
        if self._own is not None:
            self._own.settle()

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
        self._ranks.share(None)


def begin_alike(ranks: Ranks, model: nn.Module, settings: Mapping[str, object]) -> None:
    """Checks that all ranks were asked for the same run, of which they begin with rank 0's network.

    Raises ValueError where a setting is another one, or an entry of the network.
    """
    if ranks.count == 1:
        return
    state = model.state_dict()
    asked = {name: repr(value) for name, value in settings.items()}
    asked |= {repr(name): f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in state.items()}
    ranks.check_alike(asked, f"all processes need the same arguments; pass them, {INSTEAD}")
    _take_over(ranks, model, state)


def agree(ranks: Ranks, model: nn.Module) -> None:
    """Checks that the ranks, which trained together, hold the same parameters; of buffers rank 0's are everybody's.

    Raises ValueError where a parameter differs.
    """
    if ranks.count == 1:
        return
    digests = {repr(name): digest([parameter]) for name, parameter in model.named_parameters()}
    ranks.check_alike(digests, f"train the network in torch.nn.parallel.DistributedDataParallel, {INSTEAD}")
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = model.state_dict()
    _take_over(ranks, model, {name: tensor for name, tensor in state.items() if name not in trained})


def _take_over(ranks: Ranks, model: nn.Module, state: StateDict) -> None:
    """Rank 0's values of these entries, everywhere."""
    if not state:
        return
    shared = ranks.share({name: tensor.detach().cpu() for name, tensor in state.items()} if ranks.first else {})
    if not ranks.first:
        load(model, model.state_dict() | shared)
