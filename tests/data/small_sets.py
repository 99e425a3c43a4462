"""Files of a few random samples, laid out as those of the data sets are."""

import gzip
import hashlib
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from lpk.data import sets as data
from lpk.data import splits

IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def write_idx(
    folder: Path, train: int, test: int, *, packed: bool = False, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """The four IDX files with random content; the first pixels of an image spell its index."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(count), 256)
        arrays[f"{part}-images-idx3-ubyte"] = images
        arrays[f"{part}-labels-idx1-ubyte"] = random.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


def indices(split: splits.Split) -> list[int]:
    assert isinstance(split, splits.MemorySplit)
    return (split.images[:, 0, 0, 0].int() * 256 + split.images[:, 0, 0, 1].int()).tolist()


load_fashion = partial(data.load, "fashion-mnist", download=False)


def write_cifar(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, each: int = 4
) -> tuple[np.ndarray[Any, Any], list[int]]:
    """CIFAR's files of `each` samples, their MD5 sums in torchvision's tables; the training samples."""
    fine = name == "cifar100"
    dataset = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)

    def write(file: str, content: dict[str, object]) -> str:
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    images, labels = [], []
    for table in ("train_list", "test_list"):
        entries = []
        for file, _ in getattr(dataset, table):
            pixels = random.integers(0, 256, (each, 3072), dtype=np.uint8)
            targets = random.integers(0, 100 if fine else 10, each).tolist()
            entries.append((file, write(file, {"data": pixels, "fine_labels" if fine else "labels": targets})))
            if table == "train_list":
                images.append(pixels)
                labels += targets
        monkeypatch.setattr(dataset, table, entries)
    key = dataset.meta["key"]
    md5 = write(dataset.meta["filename"], {key: ["a class"] * (100 if fine else 10)})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})
    return np.concatenate(images).reshape(-1, 3, 32, 32), labels


def write_imagenet(root: Path, each: int = 3) -> None:
    random = np.random.default_rng(3)
    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (root / part / label).mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
