"""The processes that torchrun started: which one this is, who takes what, and what they tell each other.

A call that is worked on together exchanges what it has to over gloo, whatever the user's process group computes with,
and counts in a store of its own. What is called inside of it, by a user's function for instance, works alone.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lpk import terminal

T = TypeVar("T")

FAILED = "lpk/failed"  # keys of the store
TAKEN = "lpk/taken"
ARRIVED = "lpk/arrived"
SOONEST, LATEST = 0.005, 0.5  # seconds between two looks at the store

_stores: list[Any] = []  # in use; where a call failed, they stay, so that the others can read why
_alone: ContextVar[bool] = ContextVar("_alone", default=False)


class RankFailed(RuntimeError):
    """Another rank of the same call raised, or ended."""

    said_elsewhere = True  # by that rank, or by torchrun


class Ranks:
    """The processes that work on a call together; one alone where there is no group.

    Attributes:
        rank: this one, counted from 0.
        count: how many there are.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.rank, self.count = (0, 1) if group is None else (group.rank(), group.size())
        self._group = group
        self._store = None if group is None else self._make_store()
        self._exchanges = self._queues = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and shows."""
        return self.rank == 0

    def shares(self, total: int) -> Iterator[int]:
        """Which of 0..total-1 fall to this rank. Who has time takes the next one, so that slow ranks take fewer.

        Raises RankFailed before the next one where another rank has failed.
        """
        if self._store is None:
            yield from range(total)
            return
        self._queues += 1
        key = f"{TAKEN}/{self._queues}"
        while True:
            self.check()
            if (taken := self._ask(lambda store: store.add(key, 1)) - 1) >= total:
                return
            yield taken

    def gather(self, value: T) -> list[T]:
        """What every rank passes, by rank. Waits for the slowest as long as it takes."""
        if self._group is None:
            return [value]
        self._arrive()
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def share(self, value: T, source: int = 0) -> T:
        """What rank `source` passes; of the others it does not matter."""
        if self._group is None:
            return value
        self._arrive()
        return self._broadcast(value, source)

    def collect(self, own: Mapping[int, T], total: int) -> list[T]:
        """What the ranks made of 0..total-1, each of its `shares`, one after the other: they may be large."""
        owners = {i: rank for rank, numbers in enumerate(self.gather(list(own))) for i in numbers}
        if self._group is None:
            return [own[i] for i in range(total)]
        return [self._broadcast(own.get(i), owners[i]) for i in range(total)]

    def by_first(self, function: Callable[[], T]) -> T:
        """Calls a function on rank 0 alone; everyone gets what it returns. Where it raises, the others raise, too."""
        return self.share(function() if self.first else None)  # type: ignore[return-value]

    def check_alike(self, digests: Mapping[str, str], problem: str) -> None:
        """Raises ValueError, on every rank, where a digest is not that of rank 0; `problem` says what to do then."""
        found = self.gather(dict(digests))
        for rank, other in enumerate(found):
            for name in [*found[0], *other]:
                if other.get(name) != found[0].get(name):
                    raise ValueError(f"{name} of rank {rank} is not that of rank 0: {problem}")

    def fail(self, error: BaseException) -> None:
        """Lets the others know that this rank does not go on."""
        if self._store is not None and not isinstance(error, RankFailed):
            text = " ".join(str(error).split())
            with suppress(RuntimeError):  # rank 0 has ended
                self._store.set(FAILED, f"rank {self.rank} failed: {type(error).__name__}: {text}")

    def close(self) -> None:
        if self._group is not None:
            distributed.barrier(self._group)  # rank 0's store stays until everyone has what it waited for
            distributed.destroy_process_group(self._group)
            _stores.remove(self._store)

    def _make_store(self) -> distributed.TCPStore:
        """Rank 0's; that of the user's group can't be asked for before PyTorch 2.9."""
        hosts: list[Any] = [None] * self.count
        distributed.all_gather_object(hosts, socket.gethostname(), group=self._group)
        host = "localhost" if len({*hosts}) == 1 else self._broadcast(socket.getfqdn(), 0)
        store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if self.first else None
        port = self._broadcast(store and store.port, 0)
        if store is None:
            store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False)
        _stores.append(store)
        return store

    def _broadcast(self, value: Any, source: int) -> Any:
        held = [value if self.rank == source else None]
        distributed.broadcast_object_list(held, src=source, group=self._group)
        return held[0]

    def _arrive(self) -> None:
        """Waits until all ranks are here: a collective would give up after its timeout, and not say who failed."""
        self._exchanges += 1
        key, wait = f"{ARRIVED}/{self._exchanges}", SOONEST
        arrived = self._ask(lambda store: store.add(key, 1))
        while arrived < self.count:
            self.check()
            time.sleep(wait)
            wait = min(2 * wait, LATEST)
            arrived = self._ask(lambda store: store.add(key, 0))

    def check(self) -> None:
        """Raises RankFailed where another rank has failed."""
        if self._store is not None and self._ask(lambda store: store.check([FAILED])):
            raise RankFailed(self._ask(lambda store: store.get(FAILED)).decode())

    def _ask(self, question: Callable[[distributed.Store], T]) -> T:
        assert self._store is not None
        try:
            return question(self._store)
        except RuntimeError as error:
            raise RankFailed(f"rank 0, which holds the store, has ended: {error}") from error


@dataclass(frozen=True)
class Part:
    """The part of each batch that one rank trains with: samples that stand side by side, as many as the others have, or
    one less.

    Where a last batch has fewer samples than there are ranks, a rank without one takes the first, with the weight 0.
    """

    rank: int = 0
    count: int = 1

    def span(self, size: int) -> slice:
        """Where its samples stand in a batch of `size`."""
        start, stop = self._bounds(size)
        return slice(start, stop) if start < stop else slice(0, 1)

    def weight(self, size: int) -> float:
        """What its mean loss counts: the mean over the ranks is then that of the batch, in losses as in gradients."""
        start, stop = self._bounds(size)
        return (stop - start) * self.count / size

    def of(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its samples of a batch's tensors."""
        if self.count == 1:
            return tuple(batch)
        return tuple(tensor[self.span(len(tensor))] for tensor in batch)

    def _bounds(self, size: int) -> tuple[int, int]:
        start, stop = (-(-size * rank // self.count) for rank in (self.rank, self.rank + 1))
        return start, stop


WHOLE = Part()


def part_of(model: nn.Module) -> Part:
    """What this rank trains of each batch: all of it, but for a network in DistributedDataParallel."""
    wrapper = _parallel(model)
    return WHOLE if wrapper is None else Part(wrapper.process_group.rank(), wrapper.process_group.size())


def mean_over_ranks(total: Tensor, model: nn.Module) -> Tensor:
    """The mean over the ranks that train a network together."""
    wrapper = _parallel(model)
    if wrapper is None:
        return total
    mean = total.clone()
    distributed.all_reduce(mean, group=wrapper.process_group)
    return mean / wrapper.process_group.size()


def _parallel(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
        model = inner
    return model if isinstance(model, nn.parallel.DistributedDataParallel) else None


@contextmanager
def together(wanted: bool = True) -> Iterator[Ranks]:
    """The ranks that make a call together: those of torch.distributed, where it was initialised with more than one.

    wanted: False: this process alone does it.
    """
    if not wanted or not are_several():
        yield Ranks()
        return
    group: Any = distributed.new_group(backend="gloo")
    ranks = Ranks(group)
    try:
        with alone():
            yield ranks
    except BaseException as error:
        if isinstance(error, RuntimeError) and not isinstance(error, RankFailed):
            ranks.check()  # collectives say that a connection is closed, not why
        ranks.fail(error)
        raise
    ranks.close()


@contextmanager
def alone() -> Iterator[None]:
    """What is called inside does not work together with other ranks: each rank makes a call of its own."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def are_several() -> bool:
    """Whether torch.distributed was initialised with more than one process, which work together here."""
    there = distributed.is_available() and distributed.is_initialized()
    return there and distributed.get_world_size() > 1 and not _alone.get()


@contextmanager
def launched(device: str | None = None) -> Iterator[None]:
    """Inside, the processes that torchrun started are a group of torch.distributed; one alone stays so.

    device: what they compute on, by name; None: a GPU for each where there are any. The current GPU is each one's own.

    Raises ValueError where a machine has more processes than GPUs, or all are to compute on one.
    """
    if terminal.rank() is None:
        yield
        return
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if on_gpu:
        if device is not None and torch.device(device).index is not None:
            raise ValueError(f"device is {device}, but each process has a GPU of its own: leave the number out")
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"process {local + 1} of this machine has no GPU, of which there are {there}")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    yield
    distributed.destroy_process_group()  # not after an error: the others may wait in it, and torchrun ends them


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
