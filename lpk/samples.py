"""Samples for calibration and validation: read from their loader once, held in memory, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeGuard, cast

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Samples = Iterable[Batch] | Batch  # a DataLoader or the like, or (inputs, labels)

MEMORY_BUDGET = 4 << 30  # bytes held for one purpose; what is larger is streamed from its loader again each time


class Validation:
    """All samples, in an order of the caller's choice; streamed in their own order where they exceed MEMORY_BUDGET.

    Raises ValueError for a source without samples, labels that don't match, and loaders that don't yield
    (inputs, labels).
    """

    def __init__(self, samples: Samples, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        self.source: Samples | None = None
        self.count = 0
        held: list[Batch] = []
        size = 0
        for inputs, labels in _checked("validation", samples):
            self.count += len(labels)
            size += inputs.nbytes
            if size > MEMORY_BUDGET and not _is_pair(samples):
                self.source, held = samples, []
            else:
                held.append((inputs.to(device), labels.to(device)))
        if self.count == 0:
            raise ValueError("validation has no samples")
        if self.source is None:
            self.inputs, self.labels = (
                parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*held, strict=True)
            )

    def reorder(self, order: Tensor) -> None:
        """Puts the samples into another order, where they are in memory."""
        if self.source is None:
            self.inputs, self.labels = self.inputs[order], self.labels[order]

    def batches(self) -> Iterator[Batch]:
        """Batches of `batch_size`; the last one is shorter where the count is no multiple of it."""
        if self.source is not None:
            return _rebatched(_checked("validation", self.source), self.batch_size)
        return zip(self.inputs.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


class Calibration:
    """The first samples of a source, no more than were asked for so far: of a whole training set few are ever read.

    Raises ValueError as `Validation` does.
    """

    def __init__(self, samples: Samples, batch_size: int, device: torch.device) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.device = device
        self._held: list[Tensor] = []
        self._size = 0
        self._more = self._read()
        if not self._hold_next():
            raise ValueError("calibration has no samples")

    def batches(self) -> Iterator[Tensor]:
        """Inputs in batches of equal size: a shorter last one is left out, unless it is the only one."""
        i = 0
        while i < len(self._held) or (self._size <= MEMORY_BUDGET and self._hold_next()):
            yield self._held[i]
            i += 1
        if self._size > MEMORY_BUDGET:
            yield from islice(self._read(), i, None)

    def _hold_next(self) -> bool:
        batch = next(self._more, None)
        if batch is not None:
            self._held.append(batch.to(self.device))
            self._size += batch.nbytes
        return batch is not None

    def _read(self) -> Iterator[Tensor]:
        for i, (inputs, _) in enumerate(_rebatched(_checked("calibration", self.samples), self.batch_size)):
            if i == 0 or len(inputs) == self.batch_size:
                yield inputs


def _checked(name: str, samples: Samples) -> Iterator[Batch]:
    for batch in [samples] if _is_pair(samples) else cast(Iterable[Batch], samples):
        if not _is_pair(batch):
            raise ValueError(f"{name} yields {type(batch).__name__}; (inputs, labels) are needed, or pass `evaluate`")
        inputs, labels = batch
        if labels.dim() != 1 or labels.is_floating_point() or len(inputs) != len(labels):
            raise ValueError(
                f"{name}: inputs {tuple(inputs.shape)} with labels {tuple(labels.shape)} {labels.dtype}; "
                "one integer label for each input is needed, or pass `evaluate`"
            )
        if len(labels):
            yield inputs, labels


def _rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of `size`; the last one may be shorter."""
    inputs, labels = torch.empty(0), torch.empty(0)
    for x, y in batches:
        inputs, labels = (torch.cat((inputs, x)), torch.cat((labels, y))) if len(labels) else (x, y)
        while len(labels) >= size:
            yield inputs[:size], labels[:size]
            inputs, labels = inputs[size:], labels[size:]
    if len(labels):
        yield inputs, labels


def _is_pair(batch: object) -> TypeGuard[Batch]:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
