"""Splits of a data set: in-memory uint8 images, or a folder streamed by torchvision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from lpk.data.decoded import Decoded
from lpk.data.preparation import Batch, Gather, Normalise, Pixels, at_step, draw, generator
from lpk.data.streaming import Streaming
from lpk.distributed import WHOLE, Part

if TYPE_CHECKING:
    import torchvision

_CPU = torch.device("cpu")
_DECODED = 64  # samples at a time that are decoded to be kept
_LABELS = 1  # beside the seed, for random numbers that are not those of the split


class Split(Protocol):
    """Labelled images that can be iterated over in batches (`MemorySplit` and `FolderSplit`)."""

    def __len__(self) -> int: ...

    def loader(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterable[Batch]:
        """Batches, the same at every iteration: in order without a seed, else shuffled by the seed alone.

        A seed (0 or more) also decides the augmentation, whatever the process and its global random state.
        ValueError: batch_size below 1, or augment without a seed.
        """
        ...

    def take(self, count: int) -> Split:
        """The first `count` samples; ValueError if there are fewer."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """Images in memory: uint8 [N, C, H, W] with labels int64 [N], normalised by mean and std per channel.

    augmentation, what `loader(augment=True)` does: "none", or "crop-flip" (pad by 4, crop, mirror half).
    ValueError: a wrong shape or dtype.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Literal["none", "crop-flip"] = "none"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"images is {images.dtype} {list(images.shape)}, not uint8 [N, C, H, W]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels is {labels.dtype} {list(labels.shape)}, not int64 [{len(images)}]")
        if not len(self.mean) == len(self.std) == images.shape[1]:
            raise ValueError(f"mean {self.mean} and std {self.std} must have {images.shape[1]} channel(s)")
        if self.augmentation not in ("none", "crop-flip"):
            raise ValueError(f"augmentation is {self.augmentation!r}; it must be 'none' or 'crop-flip'")

    def __len__(self) -> int:
        return len(self.images)

    def loader(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterable[Batch]:
        """Batches from memory; see `Split.loader`."""
        check_loader(batch_size, seed, augment)
        return _MemoryLoader(self, batch_size, seed, self.is_augmented(augment), drop_last)

    def take(self, count: int) -> MemorySplit:
        """The first `count` samples, sharing their memory; ValueError if there are fewer."""
        check_count("count", count, 0, len(self))
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def is_augmented(self, augment: bool) -> bool:
        """Whether `loader(augment=augment)` changes an image."""
        return augment and self.augmentation == "crop-flip"

    def tensors(self) -> Batch:
        """All samples in order, normalised, unaugmented: float32 [N, C, H, W] and int64 [N]."""
        return self.normalise(self.images), self.labels

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32: (pixel / 255 - mean) / std."""
        return Normalise(self.mean, self.std, images.device)(images)

    def subset(self, indices: Tensor, *, augmented: bool) -> MemorySplit:
        """The samples at `indices`, int64 [M]; `loader(augment=True)` augments them only if `augmented`."""
        images, labels = self.images[indices], self.labels[indices]
        kind = self.augmentation if augmented else "none"
        return replace(self, images=images, labels=labels, augmentation=kind)

    def relabelled(self, labels: Tensor) -> MemorySplit:
        """The same samples under other labels, int64 [N]."""
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class _MemoryLoader:
    split: MemorySplit
    batch_size: int
    seed: int | None
    augment: bool
    drop_last: bool

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        split = self.split
        gather = Gather(split.images, split.labels, _CPU)
        normalise = Normalise(split.mean, split.std, _CPU)
        drawn = draw(len(split), self.seed, augment=self.augment)
        for step in range(len(self)):
            images, labels = gather(*at_step(drawn, self.batch_size, step))
            yield normalise(images), labels


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images read from disk when they are asked for, by `workers` processes (0: this one).

    folder: a torchvision ImageFolder without transforms; indices: which of its samples, int64 [N].
    training, evaluation: image -> uint8 [C, H, W], with and without `loader(augment=True)`.
    mean, std: batches are normalised by them, per channel.
    decoded: where `evaluation` of these samples, and perhaps of others, is kept (`kept_in`); None: nowhere.
    ValueError while iterating: a damaged image, by name; a transform that returns something else.
    """

    folder: torchvision.datasets.ImageFolder
    indices: Tensor
    training: Callable[[Any], Tensor]
    evaluation: Callable[[Any], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0
    decoded: Decoded | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def loader(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterable[Batch]:
        """Batches streamed by a torch DataLoader, or read where they are kept; see `Split.loader`."""
        check_loader(batch_size, seed, augment)
        return _FolderLoader(self, batch_size, seed, augment, drop_last)

    def pixels(
        self, batch_size: int, *, augment: bool, pin_memory: bool = False, part: Part = WHOLE
    ) -> Callable[[int], Iterable[Pixels]]:
        """What gives the same batches of a seed before they are normalised, or one rank's part of each.

        The processes that read stay as long as it does. pin_memory: whether batches lie in pinned memory.
        """
        check_loader(batch_size, 0, augment)
        if self.is_kept(augment):
            return lambda seed: self._read(batch_size, seed, pin_memory=pin_memory, part=part)
        stream = self._streaming(batch_size, augment, None, stay=True, pin_memory=pin_memory, part=part)
        return lambda seed: stream.epoch(self._order(seed), seed)

    def kept_in(self, directory: Path, name: str, made_by: str) -> FolderSplit:
        """The same samples, decoded into a file of this directory when they are first read without augmentation.

        name: that the file's begins with. made_by: of which version of what the transforms are.
        """
        root = Path(self.folder.root)
        files = [self.folder.samples[index][0].removeprefix(f"{root}/") for index in self.indices.tolist()]
        decoded = Decoded(directory, name, root, files, self.indices, f"{self.evaluation} {made_by}", self.evaluation)
        return replace(self, decoded=decoded)

    def is_kept(self, augment: bool) -> bool:
        """Whether the samples that `loader(augment=augment)` yields are in a file, which is made now if need be."""
        transform = self.training if augment else self.evaluation
        if self.decoded is None or self.decoded.transform is not transform:
            return False
        whole = self.decoded.indices

        def decode() -> Iterator[Tensor]:
            stream = self._streaming(_DECODED, False, None)
            return (images for images, _ in stream.epoch(whole, None))

        return self.decoded.is_there(decode)

    def _order(self, seed: int | None) -> Tensor:
        if seed is None:
            return self.indices
        return self.indices[torch.randperm(len(self), generator=generator(seed), device="cpu")]

    def _streaming(self, batch_size: int, augment: bool, finish: Normalise | None, **options: Any) -> Streaming:
        transform = self.training if augment else self.evaluation
        return Streaming(self.folder, transform, batch_size, finish=finish, workers=self.workers, **options)

    def _read(
        self, batch_size: int, seed: int | None, *, pin_memory: bool = False, part: Part = WHOLE
    ) -> Iterator[Pixels]:
        """The batches that are kept."""
        assert self.decoded is not None
        targets = self.folder.targets
        for batch in self._order(seed).split(batch_size):
            (own,) = part.of([batch])
            labels = torch.tensor([targets[index] for index in own.tolist()], dtype=torch.int64, device="cpu")
            pixels = self.decoded.read(own), labels
            yield (pixels[0].pin_memory(), labels.pin_memory()) if pin_memory else pixels

    def take(self, count: int) -> FolderSplit:
        """The first `count` samples; ValueError if there are fewer."""
        check_count("count", count, 0, len(self))
        return replace(self, indices=self.indices[:count])

    def subset(self, indices: Tensor, *, augmented: bool) -> FolderSplit:
        """The samples at `indices`, int64 [M]; `loader(augment=True)` augments them only if `augmented`."""
        training = self.training if augmented else self.evaluation
        return replace(self, indices=self.indices[indices], training=training)

    @property
    def labels(self) -> Tensor:
        """int64 [N]"""
        return torch.tensor(self.folder.targets, dtype=torch.int64, device="cpu")[self.indices]

    def relabelled(self, labels: Tensor) -> FolderSplit:
        """The same samples under other labels, int64 [N]."""
        folder = copy.copy(self.folder)
        folder.samples = list(folder.samples)
        for index, label in zip(self.indices.tolist(), labels.tolist(), strict=True):
            folder.samples[index] = folder.samples[index][0], label
        folder.imgs, folder.targets = folder.samples, [label for _, label in folder.samples]
        return replace(self, folder=folder)


@dataclass(frozen=True, eq=False)
class _FolderLoader:
    split: FolderSplit
    batch_size: int
    seed: int | None
    augment: bool
    drop_last: bool

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        split, normalise = self.split, Normalise(self.split.mean, self.split.std, _CPU)
        if split.is_kept(self.augment):
            for images, labels in islice(split._read(self.batch_size, self.seed), len(self)):
                yield normalise(images), labels
        else:
            stream = split._streaming(self.batch_size, self.augment, normalise, drop_last=self.drop_last)
            yield from stream.epoch(split._order(self.seed), self.seed)


def mislabelled(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """The labels, int64 [N], of which the share is wrong: round(share · N) samples, each of another class.

    The seed alone decides which samples, and which of the other classes each gets, all of them equally likely. A larger
    share has the smaller one's wrong labels among its own. ValueError: a share below 0, or not below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"label_noise is {share}; it must be at least 0 and less than 1")
    drawn = generator(seed, _LABELS)
    chosen = torch.randperm(len(labels), generator=drawn, device="cpu")[: round(share * len(labels))]
    ahead = torch.randint(1, classes, (len(labels),), generator=drawn, device="cpu")
    wrong = labels.clone()
    wrong[chosen] = (labels[chosen] + ahead[chosen]) % classes
    return wrong


def check_loader(batch_size: int, seed: int | None, augment: bool) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if augment and seed is None:
        raise ValueError("augment=True needs a seed, which decides the crops and flips")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")


def check_count(argument: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise ValueError(f"{argument} is {count}; it must be from {least} to {most}")
