"""Splits of random images, and their batches in one piece."""

from collections.abc import Iterable
from typing import Literal

import torch

from lpk.data import splits
from lpk.data.preparation import Batch

Kind = Literal["none", "crop-flip"]


def numbered(count: int, size: int = 32, augmentation: Kind = "none") -> splits.MemorySplit:
    """Random images whose labels are their indices."""
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(5))
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    return splits.MemorySplit(images.to(torch.uint8), torch.arange(count), mean, std, augmentation)


def joined(batches: Iterable[Batch]) -> Batch:
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
