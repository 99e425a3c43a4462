"""Batches on their way to a GPU: by pinned memory, copied while the device computes. On a CPU nothing moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def upload(tensors: Tensors, device: torch.device) -> Tensors:
    """Small tensors, which the host need not wait for."""
    if device.type != "cuda":
        return tensors
    return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)


class Ahead:
    """Copies batches to a device one ahead of the one that is in use, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterable[Iterable[Tensor]]) -> Iterator[Tensors]:
        """The batches on the device, for the stream that is current when each is asked for."""
        coming: Tensors | None = None
        for batch in batches:
            # Handed over before the next is sent: the current stream must not wait for that one, too.
            ready = None if coming is None else self._handed_over(coming)
            coming = self._sent(batch)
            if ready is not None:
                yield ready
        if coming is not None:
            yield self._handed_over(coming)

    def _sent(self, batch: Iterable[Tensor]) -> Tensors:
        if self._stream is None:
            return tuple(batch)
        with torch.cuda.stream(self._stream):
            return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def _handed_over(self, batch: Tensors) -> Tensors:
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in batch:
                tensor.record_stream(current)  # the side stream's memory, which must not be reused before that
        return batch
