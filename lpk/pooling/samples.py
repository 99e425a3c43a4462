"""Samples for calibration and validation: read from their loader once, held in memory, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeGuard, cast

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Samples = Iterable[Batch] | Batch  # a DataLoader or the like, or (inputs, labels)
Inputs = Samples | Iterable[Tensor] | Tensor  # the same, with or without labels or anything else behind the inputs

BATCH_SIZE = 128
# Of validation on a GPU, which more samples keep busy. A pass without gradients holds one layer's outputs at a time: it
# may take FOLD times as many samples as a loader's batches, which leave room for training.
GPU_BATCH_SIZE = 256
FOLD = 4
FEW = 8  # samples: the statistics of one batch are not those of another, nor what follows from them in a network
MEMORY_BUDGET = 4 << 30  # bytes held for one purpose; what is larger is streamed from its loader again each time


class Validation:
    """All samples, in an order of the caller's choice; streamed in their own order where they exceed MEMORY_BUDGET.

    Raises ValueError for a source without samples, inputs that are not finite or not of one shape, labels that don't
    match, and loaders that don't yield (inputs, labels).

    Args:
        batch_size: None: the loader's own, that of its largest batch, and BATCH_SIZE at most; on a GPU FOLD times its
            own, and GPU_BATCH_SIZE at most.
        name, instead: what errors call the samples, and what may be passed instead of them.

    Attributes:
        batch_size: of batches; no larger than there are samples.
        largest: the largest label.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int | None,
        device: torch.device,
        name: str = "validation",
        instead: str = "`evaluate`",
    ) -> None:
        self.source: Samples | None = None
        self._words = name, instead
        self.count = 0
        self.largest = own = 0
        held: list[Batch] = []
        size = 0
        for inputs, labels in _labelled(samples, *self._words):
            self.count += len(labels)
            own = max(own, len(labels))
            self.largest = max(self.largest, int(labels.max()))
            size += inputs.nbytes
            if size > MEMORY_BUDGET and not _is_pair(samples):
                self.source, held = samples, []
            else:
                held.append((inputs.to(device), labels.to(device)))
        if self.count == 0:
            raise ValueError(f"{name} has no samples")
        fitting = min(FOLD * own, GPU_BATCH_SIZE) if device.type == "cuda" else min(own, BATCH_SIZE)
        self.batch_size = min(batch_size or fitting, self.count)
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
            return _rebatched(_labelled(self.source, *self._words), self.batch_size)
        return zip(self.inputs.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


class Calibration:
    """The first samples of a source, no more than were asked for so far: of a whole training set few are ever read.

    Raises ValueError as `Validation` does; labels are neither needed nor looked at.

    Args:
        batch_size: None: the loader's own, that of its first batch, and BATCH_SIZE at most. So a loader of few large
            samples needs no more memory than in training, and the statistics are what update_bn takes from it.

    Attributes:
        batch_size: of batches; the only one is smaller where there are not so many samples.
        has_small_batches: whether they are of less than FEW samples, though there are more.
    """

    def __init__(self, samples: Inputs, batch_size: int | None, device: torch.device) -> None:
        self.samples = samples
        self.device = device
        batches = _inputs(samples)
        if not (read := list(islice(batches, 1))):
            raise ValueError("calibration has no samples")
        self.batch_size = batch_size or min(len(read[0]), BATCH_SIZE)
        if self.batch_size < FEW:
            read += islice(batches, 1)
        self.has_small_batches = self.batch_size < FEW and len(read) > 1
        self._held: list[Tensor] = []
        self._size = 0
        self._more = self._read(chain(read, batches))
        self._hold_next()

    def batches(self) -> Iterator[Tensor]:
        """Inputs in batches of equal size: a shorter last one is left out, unless it is the only one."""
        i = 0
        while i < len(self._held) or (self._size <= MEMORY_BUDGET and self._hold_next()):
            yield self._held[i]
            i += 1
        if self._size > MEMORY_BUDGET:
            yield from islice(self._read(_inputs(self.samples)), i, None)

    def _hold_next(self) -> bool:
        batch = next(self._more, None)
        if batch is not None:
            self._held.append(batch.to(self.device))
            self._size += batch.nbytes
        return batch is not None

    def _read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        pairs = ((inputs, inputs) for inputs in batches)
        for i, (inputs, _) in enumerate(_rebatched(pairs, self.batch_size)):
            if i == 0 or len(inputs) == self.batch_size:
                yield inputs


def first_inputs(samples: Samples, count: int) -> Tensor | None:
    """So many inputs, fewer where there are fewer; None where an iterator was read to its end before."""
    return next((inputs for inputs, _ in _rebatched(_labelled(samples, "test", "a `metric`"), count)), None)


def _labelled(samples: Samples, name: str, instead: str) -> Iterator[Batch]:
    """Validation samples, batch by batch, with labels of int64."""
    shape = None
    for batch in [samples] if _is_pair(samples) else cast(Iterable[Batch], samples):
        if not _is_pair(batch):
            raise ValueError(f"{name} yields {type(batch).__name__}; (inputs, labels) are needed, or pass {instead}")
        inputs, labels = batch
        if labels.dim() != 1 or labels.is_floating_point() or len(inputs) != len(labels):
            raise ValueError(
                f"{name}: inputs {tuple(inputs.shape)} with labels {tuple(labels.shape)} {labels.dtype}; "
                f"one integer label for each input is needed, or pass {instead}"
            )
        if len(labels):
            shape = _check(name, inputs, shape, instead)
            if int(labels.min()) < 0:
                raise ValueError(f"{name} holds the label {int(labels.min())}; labels count from 0")
            yield inputs, labels.long()


def _inputs(samples: Inputs) -> Iterator[Tensor]:
    """Calibration inputs, batch by batch: what stands first where a batch holds more."""
    shape = None
    for batch in [samples] if isinstance(samples, Tensor) or _is_pair(samples) else cast(Iterable[object], samples):
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"calibration yields {type(batch).__name__}; inputs are needed, or (inputs, ...). Where a model takes "
                'more, renew the statistics in `evaluate`, and pass statistics="interpolate" in place of calibration'
            )
        if len(inputs):
            shape = _check("calibration", inputs, shape)
            yield inputs


def _check(name: str, inputs: Tensor, shape: torch.Size | None, instead: str = "`evaluate`") -> torch.Size:
    """The shape of one sample: that of those before. Also that all numbers are finite."""
    if shape is not None and inputs.shape[1:] != shape:
        raise ValueError(
            f"{name}: inputs {tuple(inputs.shape)} after samples of shape {tuple(shape)}; all need the same, or pass "
            f"{instead}"
        )
    if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
        raise ValueError(f"{name}: inputs hold nan or inf")
    return inputs.shape[1:]


def _rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of `size`; the last one may be shorter."""
    inputs = labels = torch.empty(0, dtype=torch.float32, device="cpu")
    for x, y in batches:
        inputs, labels = (torch.cat((inputs, x)), torch.cat((labels, y))) if len(labels) else (x, y)
        while len(labels) >= size:
            yield inputs[:size], labels[:size]
            inputs, labels = inputs[size:], labels[size:]
    if len(labels):
        yield inputs, labels


def _is_pair(batch: object) -> TypeGuard[Batch]:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
