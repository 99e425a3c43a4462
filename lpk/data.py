"""Data sets as splits: in-memory uint8 images, or a folder streamed by torchvision."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import math
import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

NAMES = ("fashion-mnist", "cifar10", "cifar100", "imagenet", "digits")

Batch = tuple[Tensor, Tensor]  # inputs float32 [B, C, H, W], normalised; labels int64 [B]

# Mean and standard deviation of the training pixels in [0, 1], by channel.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "digits": ((0.305,), (0.376,)),
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
_DIGITS_TEST = 360
_PADDING = 4
_MOST_WORKERS = 16
_TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
_DOWNLOAD_ERRORS = (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error)


class DataNotFound(FileNotFoundError):
    """A data set is in none of the places it may be in; the message lists them, one line each."""


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
        _check_loader(batch_size, seed, augment)
        return _MemoryLoader(self, batch_size, seed, augment and self.augmentation == "crop-flip", drop_last)

    def take(self, count: int) -> MemorySplit:
        """The first `count` samples, sharing their memory; ValueError if there are fewer."""
        _check_count("count", count, 0, len(self))
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def tensors(self) -> Batch:
        """All samples in order, normalised, unaugmented: float32 [N, C, H, W] and int64 [N]."""
        return self.normalise(self.images), self.labels

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32: (pixel / 255 - mean) / std."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def subset(self, indices: Tensor, *, augmented: bool) -> MemorySplit:
        """The samples at `indices`, int64 [M]; `loader(augment=True)` augments them only if `augmented`."""
        images, labels = self.images[indices], self.labels[indices]
        kind = self.augmentation if augmented else "none"
        return replace(self, images=images, labels=labels, augmentation=kind)


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
        split, n = self.split, len(self.split)
        order = torch.arange(n)
        if self.seed is not None:
            # Drawn for all samples at once, so that a sample's crop does not depend on the batch size.
            generator = _generator(self.seed)
            order = torch.randperm(n, generator=generator)
            corners = torch.randint(0, 2 * _PADDING + 1, (n, 2), generator=generator)
            mirrored = torch.rand(n, generator=generator) < 0.5
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = split.images[chosen]
            if self.augment:
                images = _crop_flip(images, corners[chosen], mirrored[chosen])
            yield split.normalise(images), split.labels[chosen]


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images read from disk when they are asked for, by `workers` processes (0: this one).

    folder: a torchvision ImageFolder without transforms; indices: which of its samples, int64 [N].
    training, evaluation: image -> float32 [C, H, W], with and without `loader(augment=True)`.
    ValueError while iterating: a damaged image, by name.
    """

    folder: torchvision.datasets.ImageFolder
    indices: Tensor
    training: Callable[[Any], Tensor]
    evaluation: Callable[[Any], Tensor]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def loader(
        self, batch_size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterable[Batch]:
        """Batches streamed by a torch DataLoader; see `Split.loader`."""
        _check_loader(batch_size, seed, augment)
        order = self.indices
        if seed is not None:
            order = order[torch.randperm(len(order), generator=_generator(seed))]
        samples = _Transformed(self.folder, order, self.training if augment else self.evaluation, seed)
        # A DataLoader draws a seed for its workers, from the global random state unless it has a generator.
        workers: dict[str, Any] = {"num_workers": self.workers, "generator": _generator(0)}
        return DataLoader(samples, batch_size, drop_last=drop_last, collate_fn=_collate, **workers)

    def take(self, count: int) -> FolderSplit:
        """The first `count` samples; ValueError if there are fewer."""
        _check_count("count", count, 0, len(self))
        return replace(self, indices=self.indices[:count])

    def subset(self, indices: Tensor, *, augmented: bool) -> FolderSplit:
        """The samples at `indices`, int64 [M]; `loader(augment=True)` augments them only if `augmented`."""
        training = self.training if augmented else self.evaluation
        return replace(self, indices=self.indices[indices], training=training)


@dataclass(frozen=True)
class _Transformed(Dataset[tuple[Tensor, int]]):
    folder: torchvision.datasets.ImageFolder
    order: Tensor
    transform: Callable[[Any], Tensor]
    seed: int | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = int(self.order[position])
        image, label = self.folder[index]
        # torchvision draws its crops from the global generator: seed it for this sample, then put it back.
        with torch.random.fork_rng(devices=[]):
            if self.seed is not None:
                torch.default_generator.manual_seed(_generator(self.seed, index).initial_seed())
            return self.transform(image), label


def _generator(*entropy: int) -> torch.Generator:
    """A CPU generator for these numbers, hashed because torch's own seeding keeps 32 bits of one number."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def _crop_flip(images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Crops [B, C, H, W] of the padded images at corners int64 [B, 2], mirrored where bool [B] says so."""
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (_PADDING,) * 4)
    rows = corners[:, :1] + torch.arange(height)
    columns = corners[:, 1:] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    sample, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _collate(samples: list[tuple[Tensor, int]]) -> Batch:
    inputs, labels = default_collate(samples)  # a list, where a Batch is a tuple
    return inputs, labels


def _check_loader(batch_size: int, seed: int | None, augment: bool) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if augment and seed is None:
        raise ValueError("augment=True needs a seed, which decides the crops and flips")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")


def _check_count(argument: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise ValueError(f"{argument} is {count}; it must be from {least} to {most}")


@dataclass(frozen=True)
class Data:
    """A data set found and split. source: where it was found, in words; shape: (C, H, W) of one input."""

    name: str
    source: str
    classes: int
    shape: tuple[int, int, int]
    train: Split
    validation: Split
    test: Split


def load(
    name: str,
    *,
    validation: int,
    root: Path | None = None,
    seed: int = 0,
    train: int | None = None,
    download: bool = True,
) -> Data:
    """Find the data set `name` (one of NAMES) and split `validation` samples off its training set at random.

    Searched in this order: `root`, the environment variable LPK_DATA, the cache folder, for Fashion-MNIST the
    Debian package dataset-fashion-mnist, and with `download` torchvision's download into the cache folder
    (not ImageNet). seed: which samples are split off. train: keep only that many of the rest (None: all).
    The test set is the original one (ImageNet: val/; digits: the same 360 samples always). Table 3 has the
    paper's sizes.
    ValueError: an unknown name, a split that does not fit, a damaged file. DataNotFound: it is nowhere.
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(NAMES)}")
    source, whole, test = _find(name, root, download)
    _check_count("validation", validation, 0, len(whole) - 1)
    rest = len(whole) - validation
    _check_count("train", rest if train is None else train, 1, rest)
    order = torch.randperm(len(whole), generator=_generator(seed))
    held_out, kept = order[:validation], order[validation:][:train]
    if isinstance(whole, MemorySplit):
        channels, height, width = whole.images.shape[1:]
        classes = {"cifar100": 100}.get(name, 10)
    else:
        channels, height, width = 3, 224, 224
        classes = len(whole.folder.classes)  # 1,000, or fewer in a user's own folder
    return Data(
        name,
        source,
        classes,
        (channels, height, width),
        train=whole.subset(kept, augmented=True),
        validation=whole.subset(held_out, augmented=False),
        test=test,
    )


def _find(name: str, root: Path | None, download: bool) -> tuple[str, _Whole, _Whole]:
    """Where the data set was found, its whole training set and its test set."""
    if name == "digits":
        return "scikit-learn", *_read_digits()
    reader = _READERS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lpk"
    named = os.environ.get("LPK_DATA")
    places = [("the cache folder", cache)]
    if named:
        places.insert(0, ("the folder in LPK_DATA", Path(named).expanduser()))
    if root is not None:
        places.insert(0, ("the folder given (--data)", Path(root).expanduser()))
    if name == "fashion-mnist":
        places.append(("Debian package dataset-fashion-mnist", _DEBIAN))
    looked = [] if named else ["LPK_DATA: not set"]
    for words, place in places:
        try:
            return words, *reader(name, place)
        except FileNotFoundError as error:
            looked.append(f"{words}, {place}: {error}")
    if name not in _TORCHVISION:
        looked.append("download: its licence allows none; get it from image-net.org")
    elif not download:
        looked.append("download: not asked for")
    else:
        try:
            _download(name, cache)
            return "torchvision's download", *reader(name, cache)
        except _DOWNLOAD_ERRORS as error:
            looked.append(f"torchvision's download: {error or type(error).__name__}")
    lines = "\n".join("  " + " ".join(line.split()) for line in looked)
    raise DataNotFound(f"{name} is in none of these places (--data or LPK_DATA names its folder):\n{lines}")


def _download(name: str, cache: Path) -> None:
    """Let torchvision download into the cache folder: all of it or, after any failure, nothing."""
    dataset, folder = _TORCHVISION[name]
    cache.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        try:
            socket.setdefaulttimeout(_TIMEOUT)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                dataset(scratch, download=True)
        finally:
            socket.setdefaulttimeout(timeout)
        if (cache / folder).exists():  # an incomplete copy, or it would have been found
            os.replace(cache / folder, Path(scratch) / "replaced")
        os.replace(Path(scratch) / folder, cache / folder)


def _read_fashion_mnist(name: str, place: Path) -> tuple[MemorySplit, MemorySplit]:
    folder = place / "FashionMNIST" / "raw"
    if not folder.is_dir():
        folder = place
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    files = [f"{part}-{kind}" for part in ("train", "t10k") for kind in kinds]
    paths = [next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None) for file in files]
    missing = [file for file, path in zip(files, paths, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(f"no {missing[0]}[.gz]")
    splits = []
    for image_path, label_path in (paths[:2], paths[2:]):
        assert image_path is not None and label_path is not None
        images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{image_path}: images of {list(images.shape[1:])} pixels, not [28, 28]")
        if len(labels) != len(images) or (labels >= 10).any():
            raise ValueError(f"{label_path}: it must hold {len(images)} labels from 0 to 9")
        splits.append(MemorySplit(images[:, None], labels.to(torch.int64), *_STATISTICS[name]))
    return splits[0], splits[1]


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """A plain or .gz IDX file of unsigned bytes, as uint8. ValueError: damaged, or another format."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimension(s)")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    size = len(content) - start
    if size != math.prod(shape):
        raise ValueError(f"{path}: damaged: {size} bytes of data, but its header says {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _read_cifar(name: str, place: Path) -> tuple[MemorySplit, MemorySplit]:
    dataset, folder = _TORCHVISION[name]
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    for file, md5 in files:
        path = place / folder / file
        if not path.is_file():
            raise FileNotFoundError(f"no {folder}/{file}")
        if not torchvision.datasets.utils.check_integrity(path, md5):
            raise ValueError(f"{path}: damaged, its MD5 sum is not {md5}")
    parts = [dataset(place, train=train) for train in (True, False)]  # compares the sums again, then unpickles
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        splits.append(MemorySplit(images, torch.tensor(part.targets), *_STATISTICS[name]))
    return replace(splits[0], augmentation="crop-flip"), splits[1]


def _read_imagenet(name: str, place: Path) -> tuple[FolderSplit, FolderSplit]:
    """train/ and val/ with a folder for each class, in the place itself or in a folder imagenet/ of it."""
    place = place / "imagenet" if (place / "imagenet").is_dir() else place
    for part in ("train", "val"):
        if not (place / part).is_dir():
            raise FileNotFoundError(f"no folder {part}")
    parts = [torchvision.datasets.ImageFolder(place / part, loader=_open_image) for part in ("train", "val")]
    if parts[0].classes != parts[1].classes:
        raise ValueError(f"{place}: train and val must have the same class folders")
    finish = [transforms.ToTensor(), transforms.Normalize(*_STATISTICS[name])]
    crop_flip = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *finish])
    central = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *finish])
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    train, test = (FolderSplit(part, torch.arange(len(part)), crop_flip, central, workers) for part in parts)
    return train, replace(test, training=central)


def _open_image(path: str) -> Any:
    try:
        return torchvision.datasets.folder.default_loader(path)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors rarely name the file
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _read_digits() -> tuple[MemorySplit, MemorySplit]:
    try:
        from sklearn.datasets import load_digits  # here: it brings a second OpenMP runtime
    except ImportError as error:
        raise DataNotFound(f"digits comes with scikit-learn, which cannot be imported: {error}") from error
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=_generator(0))
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # from 0..16 to 0..255
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    whole = MemorySplit(images[order], labels[order], *_STATISTICS["digits"])
    first = len(whole) - _DIGITS_TEST
    return whole.take(first), whole.subset(torch.arange(first, len(whole)), augmented=False)


_Whole = MemorySplit | FolderSplit
_READERS: dict[str, Callable[[str, Path], tuple[_Whole, _Whole]]] = {
    "fashion-mnist": _read_fashion_mnist,
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "imagenet": _read_imagenet,
}
_TORCHVISION: dict[str, tuple[Any, str]] = {  # what downloads it, and the folder that then holds it
    "fashion-mnist": (torchvision.datasets.FashionMNIST, "FashionMNIST"),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
}
