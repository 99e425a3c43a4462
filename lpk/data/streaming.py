"""A folder's samples, read and transformed by worker processes: the DataLoader behind `lpk.data.splits.FolderSplit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lpk.data.preparation import Batch, Normalise, Pixels, generator
from lpk.distributed import WHOLE, Part

if TYPE_CHECKING:
    import torchvision

_Key = tuple[int | None, int]  # the epoch's seed, and which sample of the folder


class Streaming:
    """Batches of some samples of a folder, one epoch after the other.

    Args:
        folder: whose samples they are.
        transform: image -> uint8 [C, H, W]; of a seed and the sample alone, whatever random numbers it draws.
        batch_size: of all ranks together.
        finish: makes of uint8 [C, H, W] what a batch holds; None: batches are uint8, in channels_last.
        workers: processes that read; 0: this one.
        stay: whether they wait for the next epoch, where they are needed again.
        pin_memory: whether batches lie in pinned memory.
        drop_last: whether a last batch of fewer samples is left out.
        part: what this rank gets of each batch; the other samples are not read.
    """

    def __init__(
        self,
        folder: torchvision.datasets.ImageFolder,
        transform: Callable[[Any], Tensor],
        batch_size: int,
        *,
        finish: Normalise | None = None,
        workers: int = 0,
        stay: bool = False,
        pin_memory: bool = False,
        drop_last: bool = False,
        part: Part = WHOLE,
    ) -> None:
        self._keys = _Keys(batch_size, drop_last, part)
        self._batches: DataLoader[Any] = DataLoader(
            _Samples(folder, transform, finish),
            batch_sampler=self._keys,
            collate_fn=_collate if finish is None else _collate_finished,
            num_workers=workers,
            persistent_workers=stay and workers > 0,
            pin_memory=pin_memory,
            # A DataLoader draws a seed for its workers, from the global random state unless it has a generator.
            generator=generator(0),
        )

    def epoch(self, order: Tensor, seed: int | None) -> Iterator[Batch | Pixels]:
        """The samples at `order`, int64 [N], as the seed transforms them. Raises what reading one raised."""
        self._keys.order, self._keys.seed = order, seed
        for batch in self._batches:
            if isinstance(batch, ValueError):
                raise batch
            yield batch


class _Keys(Sampler[list[_Key]]):
    """What is read for each batch of an epoch."""

    def __init__(self, batch_size: int, drop_last: bool, part: Part) -> None:
        self.order = torch.empty(0, dtype=torch.int64, device="cpu")
        self.seed: int | None = None
        self._batch_size, self._drop_last, self._part = batch_size, drop_last, part

    def __iter__(self) -> Iterator[list[_Key]]:
        for batch in self.order.split(self._batch_size):  # of nothing, an empty one
            if len(batch) == self._batch_size or (len(batch) and not self._drop_last):
                (own,) = self._part.of([batch])
                yield [(self.seed, index) for index in own.tolist()]


@dataclass(frozen=True)
class _Samples(Dataset[Any]):
    """Samples by key. One that can't be read is the ValueError that says so: a DataLoader would wrap it in a trace."""

    folder: torchvision.datasets.ImageFolder
    transform: Callable[[Any], Tensor]
    finish: Normalise | None

    def __getitem__(self, key: _Key) -> tuple[Tensor, int] | ValueError:
        try:
            return self._read(*key)
        except ValueError as error:
            return error

    def _read(self, seed: int | None, index: int) -> tuple[Tensor, int]:
        image, label = self.folder[index]
        # torchvision draws its crops from the global generator: seed it for this sample, then put it back.
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(generator(seed, index).initial_seed())
            pixels = self.transform(image)
        if pixels.dtype != torch.uint8 or pixels.dim() != 3:
            raise ValueError(f"a transform returned {pixels.dtype} {list(pixels.shape)}, not uint8 [C, H, W]")
        # A picture has its channels innermost; a batch is contiguous anyway, but with one channel at a time is sooner.
        return (pixels if self.finish is None else self.finish(pixels.contiguous())), label


def _collate(samples: list[Any]) -> Pixels | ValueError:
    """uint8 [B, C, H, W] in channels_last, which most samples are, too."""
    if failed := [sample for sample in samples if isinstance(sample, ValueError)]:
        return failed[0]
    images, labels = default_collate([(image.permute(1, 2, 0), label) for image, label in samples])
    return images.permute(0, 3, 1, 2), labels


def _collate_finished(samples: list[Any]) -> Batch | ValueError:
    if failed := [sample for sample in samples if isinstance(sample, ValueError)]:
        return failed[0]
    inputs, labels = default_collate(samples)  # a list, where a Batch is a tuple
    return inputs, labels
