"""From stored samples to a batch: gather, crop, mirror and normalise, as a seed decides.

What is random is drawn on the CPU for a whole epoch. The rest is operations on tensors of one device, which neither
wait for it nor send anything to it: constants are there from the start, and a CUDA graph can hold all of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # inputs float32 [B, C, H, W], normalised; labels int64 [B]
Pixels = tuple[Tensor, Tensor]  # images uint8 [B, C, H, W], as they are stored; labels int64 [B]

_PADDING = 4


def generator(*entropy: int) -> torch.Generator:
    """A CPU generator for these numbers, hashed because torch's own seeding keeps 32 bits of one number."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def draw(count: int, seed: int | None, *, augment: bool) -> tuple[Tensor, ...]:
    """What an epoch of `count` samples gives to `Gather`, on the CPU: in order without a seed, else shuffled by it."""
    if seed is None:
        return (torch.arange(count, device="cpu"),)
    # Drawn for all samples at once, so that a sample's crop does not depend on the batch size.
    drawn = generator(seed)
    order = torch.randperm(count, generator=drawn, device="cpu")
    if not augment:
        return (order,)
    corners = torch.randint(0, 2 * _PADDING + 1, (count, 2), generator=drawn, device="cpu")
    mirrored = torch.rand(count, generator=drawn, dtype=torch.float32, device="cpu") < 0.5
    return order, corners[order], mirrored[order]


def at_step(drawn: tuple[Tensor, ...], batch_size: int, step: int) -> tuple[Tensor, ...]:
    """What one step of the epoch that was drawn gives to `Gather`."""
    return tuple(each[step * batch_size : (step + 1) * batch_size] for each in drawn)


class Gather:
    """Samples on a device, of which batches are made there.

    Args:
        images, labels: uint8 [N, C, H, W] and int64 [N].
    """

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device) -> None:
        self.images, self.labels = images.to(device), labels.to(device)
        channels, height, width = images.shape[1:]
        self._channels = torch.arange(channels, device=device)[:, None, None]
        self._rows, self._columns = torch.arange(height, device=device), torch.arange(width, device=device)
        self._mirrored_columns = self._columns.flip(0)

    def __call__(self, chosen: Tensor, corners: Tensor | None = None, mirrored: Tensor | None = None) -> Pixels:
        """The samples at chosen, int64 [B]; crops of the padded images at corners, int64 [B, 2], where these are given,
        mirrored where bool [B] says so.
        """
        images, labels = self.images[chosen], self.labels[chosen]
        if corners is not None and mirrored is not None:
            images = self._crop_flip(images, corners, mirrored)
        return images, labels

    def _crop_flip(self, images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(images, (_PADDING,) * 4)
        rows = corners[:, :1] + self._rows
        columns = corners[:, 1:] + torch.where(mirrored[:, None], self._mirrored_columns, self._columns)
        # The images of the batch count from 0: those that were gathered lie side by side.
        sample = torch.arange(len(images), device=images.device)[:, None, None, None]
        return padded[sample, self._channels, rows[:, None, :, None], columns[:, None, None, :]]


class Normalise:
    """uint8 [..., C, H, W] to float32: (pixel / 255 - mean) / std, the same bits on every device."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        # 255 is a tensor, too: a GPU multiplies by the reciprocal of a number, which is rounded otherwise.
        self._most = torch.tensor(255, dtype=torch.float32, device=device)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).div_(self._most).sub_(self._mean).div_(self._std)
