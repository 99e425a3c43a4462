"""How training batches reach a device: inputs for each step, and operations there that make a batch of them.

A split in memory lies on the device as it is stored, and a step's inputs are which samples it takes. What does not fit
a GPU, or is read from a folder, is streamed to it as uint8 by worker processes. Batches of any other split are moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpk.data.preparation import Batch, Gather, Normalise, Pixels, at_step, draw, generator
from lpk.data.splits import FolderSplit, MemorySplit, Split, check_loader
from lpk.data.uploads import Ahead, upload
from lpk.distributed import WHOLE, Part

_WORKERS = 4  # processes that crop and flip what lies in memory: little work


class Feed(Protocol):
    """A split's training batches on a device, the bits of `Split.loader` in channels_last.

    steps: of an epoch.
    """

    steps: int

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of `batch` for each step, on the device; of equal shapes but for the last step's."""
        ...

    def batch(self, *inputs: Tensor) -> Batch:
        """Normalised and augmented. It neither waits for the device nor sends it anything: a CUDA graph can hold it."""
        ...


def feed(split: Split, device: torch.device, batch_size: int, *, augment: bool, part: Part = WHOLE) -> Feed:
    """The training batches of a split, or one rank's part of each. Raises ValueError for a batch_size below 1.

    A split in memory stays on a GPU where it takes at most half of what is free there, as long as the feed lives.
    """
    check_loader(batch_size, 0, augment)
    # A subclass may have a loader of its own.
    if type(split) is MemorySplit and device.type in ("cpu", "cuda"):
        if _fits(split, device):
            with suppress(torch.OutOfMemoryError):
                return Resident(split, device, batch_size, augment=augment, part=part)
        return stream_memory(split, device, batch_size, augment=augment, part=part)
    if type(split) is FolderSplit and device.type in ("cpu", "cuda"):
        return stream_folder(split, device, batch_size, augment=augment, part=part)
    return Moved(split, device, batch_size, augment=augment, part=part)


def _fits(split: MemorySplit, device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.nbytes + split.labels.nbytes <= free // 2


class Resident:
    """Samples that lie on the device.

    Inputs: chosen, int64 [B]; where they are augmented also corners, int64 [B, 2], and mirrored, bool [B].
    """

    def __init__(
        self, split: MemorySplit, device: torch.device, batch_size: int, *, augment: bool, part: Part = WHOLE
    ) -> None:
        self.steps = math.ceil(len(split) / batch_size)
        self.device, self.batch_size, self.part = device, batch_size, part
        self.augment = split.is_augmented(augment)
        self._gather = Gather(split.images, split.labels, device)
        self._normalise = Normalise(split.mean, split.std, device)

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        drawn = upload(draw(len(self._gather.labels), seed, augment=self.augment), self.device)
        return (self.part.of(at_step(drawn, self.batch_size, step)) for step in range(self.steps))

    def batch(self, *inputs: Tensor) -> Batch:
        images, labels = self._gather(*inputs)
        return _channels_last(self._normalise(images)), labels


class Streamed:
    """Samples that worker processes send. Inputs: images, uint8 [B, C, H, W], and labels, int64 [B].

    Args:
        steps: of an epoch.
        pixels: an epoch's batches by its seed, in pinned memory where the device is a GPU.
        normalise: on the device.
    """

    def __init__(
        self, steps: int, pixels: Callable[[int], Iterable[Pixels]], normalise: Normalise, device: torch.device
    ) -> None:
        self.steps = steps
        self._pixels = pixels
        self._normalise = normalise
        self._ahead = Ahead(device)

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        return self._ahead(self._pixels(seed))

    def batch(self, *inputs: Tensor) -> Batch:
        images, labels = inputs
        return _channels_last(self._normalise(images)), labels


class Moved:
    """A loader's own batches, moved. Inputs: float [B, ...] and labels, int64 [B]."""

    def __init__(
        self, split: Split, device: torch.device, batch_size: int, *, augment: bool, part: Part = WHOLE
    ) -> None:
        self.steps = math.ceil(len(split) / batch_size)
        self.split, self.device, self.batch_size, self.augment, self.part = split, device, batch_size, augment, part

    def epoch(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.split.loader(self.batch_size, seed=seed, augment=self.augment):
            inputs, labels = self.part.of(batch)
            yield inputs.to(self.device), labels.to(self.device)

    def batch(self, *inputs: Tensor) -> Batch:
        images, labels = inputs
        return _channels_last(images), labels


def stream_memory(
    split: MemorySplit,
    device: torch.device,
    batch_size: int,
    *,
    augment: bool,
    workers: int | None = None,
    part: Part = WHOLE,
) -> Streamed:
    """A split in memory, cropped and mirrored by `workers` processes (0: this one)."""
    steps = math.ceil(len(split) / batch_size)
    gather = Gather(split.images, split.labels, torch.device("cpu"))
    options: dict[str, Any] = {
        "num_workers": min(_WORKERS, torch.get_num_threads()) if workers is None else workers,
        "pin_memory": device.type == "cuda",
    }

    def pixels(seed: int) -> Iterable[Pixels]:
        drawn = draw(len(split), seed, augment=split.is_augmented(augment))
        batches = _Gathered(gather, drawn, batch_size, steps, part)
        return DataLoader(batches, batch_size=None, generator=generator(0), **options)

    return Streamed(steps, pixels, Normalise(split.mean, split.std, device), device)


def stream_folder(
    split: FolderSplit, device: torch.device, batch_size: int, *, augment: bool, part: Part = WHOLE
) -> Streamed:
    """A split in a folder, read by its own number of processes, which stay as long as the feed."""
    pixels = split.pixels(batch_size, augment=augment, pin_memory=device.type == "cuda", part=part)
    return Streamed(math.ceil(len(split) / batch_size), pixels, Normalise(split.mean, split.std, device), device)


@dataclass(frozen=True, eq=False)
class _Gathered(Dataset[Pixels]):
    """Whole batches, by step."""

    gather: Gather
    drawn: tuple[Tensor, ...]
    batch_size: int
    steps: int
    part: Part

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Pixels:
        return self.gather(*self.part.of(at_step(self.drawn, self.batch_size, step)))


def _channels_last(inputs: Tensor) -> Tensor:
    """As convolutions read images fastest; what are no images stays as it is."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
