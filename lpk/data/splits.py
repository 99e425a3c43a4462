"""Splits of a data set: in-memory uint8 images, or a folder streamed by torchvision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lpk.data.preparation import Batch, Gather, Normalise, Pixels, at_step, draw, generator
from lpk.distributed import WHOLE, Part

if TYPE_CHECKING:
    import torchvision

_CPU = torch.device("cpu")
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
    ValueError while iterating: a damaged image, by name; a transform that returns something else.
    """

    folder: torchvision.datasets.ImageFolder
    indices: Tensor
    training: Callable[[Any], Tensor]
    evaluation: Callable[[Any], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def loader(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterable[Batch]:
        """Batches streamed by a torch DataLoader; see `Split.loader`."""
        finish = Normalise(self.mean, self.std, _CPU)
        return self._loader(batch_size, seed, augment, finish, drop_last=drop_last)

    def pixels(
        self, batch_size: int, *, seed: int, augment: bool, pin_memory: bool, part: Part = WHOLE
    ) -> Iterable[Pixels]:
        """The same batches before they are normalised, where asked for in pinned memory, or one rank's part of each."""
        return self._loader(batch_size, seed, augment, None, pin_memory=pin_memory, part=part)

    def _loader(
        self,
        batch_size: int,
        seed: int | None,
        augment: bool,
        finish: Normalise | None,
        *,
        part: Part = WHOLE,
        **options: Any,
    ) -> DataLoader[Any]:
        check_loader(batch_size, seed, augment)
        order = self.indices
        if seed is not None:
            order = order[torch.randperm(len(order), generator=generator(seed), device="cpu")]
        samples = _Transformed(self.folder, order, self.training if augment else self.evaluation, finish, seed)
        # A DataLoader draws a seed for its workers, from the global random state unless it has a generator.
        options |= {"num_workers": self.workers, "generator": generator(0)}
        if part.count > 1:  # the other ranks' samples are not read
            batches = [range(i, min(i + batch_size, len(order))) for i in range(0, len(order), batch_size)]
            own = [list(batch[part.span(len(batch))]) for batch in batches]
            return DataLoader(samples, batch_sampler=own, collate_fn=_collate, **options)
        return DataLoader(samples, batch_size, collate_fn=_collate, **options)

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


@dataclass(frozen=True)
class _Transformed(Dataset[tuple[Tensor, int]]):
    folder: torchvision.datasets.ImageFolder
    order: Tensor
    transform: Callable[[Any], Tensor]
    finish: Normalise | None
    seed: int | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self.order[position])
        image, label = self.folder[index]
        # torchvision draws its crops from the global generator: seed it for this sample, then put it back.
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(generator(self.seed, index).initial_seed())
            pixels = self.transform(image)
        if pixels.dtype != torch.uint8 or pixels.dim() != 3:
            raise ValueError(f"a transform returned {pixels.dtype} {list(pixels.shape)}, not uint8 [C, H, W]")
        # A picture has its channels innermost; a batch is contiguous anyway, but with one channel at a time is sooner.
        return (pixels if self.finish is None else self.finish(pixels.contiguous())), label


def _collate(samples: list[tuple[Tensor, int]]) -> Batch | Pixels:
    inputs, labels = default_collate(samples)  # a list, where a Batch is a tuple
    return inputs, labels


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
