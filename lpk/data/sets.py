"""Data sets by name: where each is looked for, read and, where there is a network, downloaded."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import math
import os
import shutil
import socket
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpk import choices, extras
from lpk.data.preparation import generator
from lpk.data.splits import FolderSplit, MemorySplit, Split, check_count, mislabelled

extras.need("lpk.data", "torchvision", "PIL")

import torchvision

from lpk.data import imagenet

NAMES = ("fashion-mnist", "cifar10", "cifar100", "imagenet", "digits")
# How many training samples each has, those for validation included; a user's own ImageNet may have fewer.
TRAINING = {"fashion-mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167, "digits": 1_437}

# Classes of each, and (C, H, W) of one input; a user's own ImageNet may have fewer classes.
CLASSES = {"fashion-mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "digits": 10}
SHAPES: dict[str, tuple[int, int, int]] = {
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "imagenet": (3, 224, 224),
    "digits": (1, 8, 8),
}

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
_MOST_WORKERS = 32  # each holds two batches ahead
_LARGEST_IDX = 2**27  # bytes of a file, unpacked: the largest has 47 million
_TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
_DAY = 24 * 60 * 60.0  # seconds
_DOWNLOAD_ERRORS = (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error)


class DataNotFound(FileNotFoundError):
    """A data set is in none of the places it may be in; the message lists them, one line each."""

    many_lines = True


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
    label_noise: float = 0.0,
    download: bool = True,
) -> Data:
    """Find the data set `name` (one of NAMES) and split `validation` samples off its training set at random.

    Searched in this order: `root`, the environment variable LPK_DATA, the cache folder, for Fashion-MNIST the
    Debian package dataset-fashion-mnist, and with `download` torchvision's download into the cache folder
    (not ImageNet). seed: which samples are split off. train: keep only that many of the rest (None: all), drawn
    without regard to their classes; a smaller number's are among a larger one's, the validation samples the same.
    label_noise: the share of the training samples whose label is replaced by another class, see `mislabelled`.
    The labels of the validation and test samples stay as they are. The test set is the original one (ImageNet:
    val/; digits: the same 360 samples always). Table 3 has the paper's sizes.
    ValueError: an unknown name, a label_noise outside 0 ≤ x < 1, a split that does not fit, a damaged file.
    DataNotFound: it is nowhere.
    """
    choices.check("name", name, NAMES)
    source, whole, test = _find(name, root, download)
    check_count("validation", validation, 0, len(whole) - 1)
    rest = len(whole) - validation
    check_count("train", rest if train is None else train, 1, rest)
    order = torch.randperm(len(whole), generator=generator(seed), device="cpu")
    held_out, kept = order[:validation], order[validation:][:train]
    classes = CLASSES[name] if isinstance(whole, MemorySplit) else len(whole.folder.classes)
    training = whole.subset(kept, augmented=True)
    if label_noise:
        training = training.relabelled(mislabelled(training.labels, classes, label_noise, seed))
    return Data(
        name,
        source,
        classes,
        SHAPES[name],
        train=training,
        validation=_kept(whole.subset(held_out, augmented=False), "validation", name),
        test=_kept(test, "test", name),
    )


def cache_folder() -> Path:
    """Where downloads lie, and what is made of data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lpk"


def _find(name: str, root: Path | None, download: bool) -> tuple[str, _Whole, _Whole]:
    """Where the data set was found, its whole training set and its test set."""
    if name == "digits":
        return "scikit-learn", *_read_digits()
    reader = _READERS[name]
    cache = cache_folder()
    named = os.environ.get("LPK_DATA")
    places = [("the cache folder", cache)]
    if named:
        places.insert(0, ("the folder in LPK_DATA", Path(named).expanduser().absolute()))
    if root is not None:
        places.insert(0, ("the folder given (--data)", Path(root).expanduser().absolute()))
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
    _sweep(cache)
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


def _sweep(cache: Path) -> None:
    """Removes what killed downloads left: nobody downloads for a day."""
    for left in cache.glob(".download-*"):
        if left.is_dir() and not left.is_symlink() and time.time() - left.stat().st_mtime > _DAY:
            shutil.rmtree(left, ignore_errors=True)


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
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST_IDX + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from error
    if len(content) > _LARGEST_IDX:
        raise ValueError(f"{path}: it has more than {_LARGEST_IDX:,} bytes, which no file of the data set has")
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
        labels = torch.tensor(part.targets, dtype=torch.int64, device="cpu")
        splits.append(MemorySplit(images, labels, *_STATISTICS[name]))
    return replace(splits[0], augmentation="crop-flip"), splits[1]


def _read_imagenet(name: str, place: Path) -> tuple[FolderSplit, FolderSplit]:
    """train/ and val/ with a folder for each class, in the place itself or in a folder imagenet/ of it."""
    place = place / "imagenet" if (place / "imagenet").is_dir() else place
    for part in ("train", "val"):
        if not (place / part).is_dir():
            raise FileNotFoundError(f"no folder {part}")
    parts = [torchvision.datasets.ImageFolder(place / part, loader=imagenet.read) for part in ("train", "val")]
    if parts[0].classes != parts[1].classes:
        raise ValueError(f"{place}: train and val must have the same class folders")
    central = imagenet.evaluation()
    train, test = (
        FolderSplit(
            part,
            torch.arange(len(part), device="cpu"),
            imagenet.training(),
            central,
            *_STATISTICS[name],
            workers=_workers(),
        )
        for part in parts
    )
    return train, replace(test, training=central)


def _workers() -> int:
    """How many processes read for this one: as many as it has threads or, under torchrun, cores."""
    threads, processes = torch.get_num_threads(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:  # torchrun lets each of them compute with one thread
        threads = max(threads, len(os.sched_getaffinity(0)) // processes)
    return min(threads, _MOST_WORKERS)


def _kept(split: _Whole, part: str, name: str) -> _Whole:
    """A split whose samples are read often and never augmented: decoded once, into the cache folder."""
    if isinstance(split, MemorySplit):
        return split
    made_by = f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}"
    return split.kept_in(cache_folder() / "decoded", f"{name}-{part}", made_by)


def _read_digits() -> tuple[MemorySplit, MemorySplit]:
    extras.need("the data set digits", "sklearn")
    from sklearn.datasets import load_digits  # here: it brings a second OpenMP runtime

    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=generator(0), device="cpu")
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]  # from 0..16 to 0..255
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    whole = MemorySplit(images[order], labels[order], *_STATISTICS["digits"])
    first = len(whole) - _DIGITS_TEST
    return whole.take(first), whole.subset(torch.arange(first, len(whole), device="cpu"), augmented=False)


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
