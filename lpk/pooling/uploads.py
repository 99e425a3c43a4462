"""Tickets on the device that a search runs on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lpk.networks.flat import Flat
from lpk.tickets.ticket import Ticket

SHARE = 0.5  # of the free memory of a GPU that tickets may take
ALIGNMENT = 16  # bytes


class Uploads:
    """Tickets on a device. On a GPU they stay there for all targets if all of them fit; and while one is searched, the
    next one comes, on a stream of its own.

    Args:
        tickets: by round.
    """

    def __init__(self, tickets: Sequence[Ticket], device: torch.device) -> None:
        self.tickets = tickets
        self.device = device
        self._held: dict[int, Future[tuple[Flat, torch.cuda.Event]]] = {}
        self._worker: ThreadPoolExecutor | None = None
        self.all_fit = False
        if device.type == "cuda":
            self._worker = ThreadPoolExecutor(1, "lpk-upload")
            self._stream = torch.cuda.Stream(device)
            self._pinned: Tensor | None = None
            free, _ = torch.cuda.mem_get_info(device)
            self.all_fit = sum(_size(ticket.flat) for ticket in tickets) <= SHARE * free

    def take(self, number: int, following: int | None = None) -> Flat:
        """A ticket on the device; `following` is the one that will be needed next."""
        if self._worker is None or self.tickets[number].flat.weights.device.type != "cpu":
            return self.tickets[number].flat.to(self.device)
        future = self._coming(number)
        if not self.all_fit:
            self._held = {number: future}
        if following is not None:
            self._coming(following)
        flat, arrived = future.result()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for x in (flat.weights, flat.rest):
            x.record_stream(current)
        return flat

    def close(self) -> None:
        """Nothing more will be needed."""
        self._held.clear()
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)

    def _coming(self, number: int) -> Future[tuple[Flat, torch.cuda.Event]]:
        assert self._worker is not None
        if number not in self._held:
            self._held[number] = self._worker.submit(self._upload, self.tickets[number].flat)
        return self._held[number]

    def _upload(self, flat: Flat) -> tuple[Flat, torch.cuda.Event]:
        """In the worker, through memory that the device reads while the host goes on. Also the moment of arrival."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream), torch.inference_mode(False):
            size = _size(flat)
            if self._pinned is None or self._pinned.numel() < size:
                self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._stream.synchronize()  # the ticket before has left it
            moved, at = [], 0
            for x in (flat.weights, flat.rest):
                staged = self._pinned[at : at + x.nbytes].view(x.dtype)
                at += -(-x.nbytes // ALIGNMENT) * ALIGNMENT
                staged.copy_(x)
                moved.append(torch.empty_like(x, device=self.device).copy_(staged, non_blocking=True))
            return Flat(moved[0], moved[1], flat.integers), self._stream.record_event()


def _size(flat: Flat) -> int:
    """Bytes of both vectors, each with room for its alignment."""
    return sum(-(-x.nbytes // ALIGNMENT) * ALIGNMENT for x in (flat.weights, flat.rest))
