"""The files of Fashion-MNIST and CIFAR: what they hold is read, and damaged ones are named."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from lpk.data import sets as data
from lpk.data import splits
from tests.data.small_sets import IDX_FILES, indices, load_fashion, write_cifar, write_idx

# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_idx_files_are_read_from_either_layout(tmp_path: Path, layout: str, packed: bool) -> None:
    arrays = write_idx(tmp_path / layout, 50, 20, packed=packed)
    loaded = load_fashion(validation=0, root=tmp_path)
    assert (loaded.name, loaded.classes, loaded.shape) == ("fashion-mnist", 10, (1, 28, 28))
    for split, part in ((loaded.train, "train"), (loaded.test, "t10k")):
        assert isinstance(split, splits.MemorySplit)
        assert (split.mean, split.std, split.augmentation) == ((0.2860,), (0.3530,), "none")
        order = indices(split)
        assert sorted(order) == list(range(len(split)))
        np.testing.assert_array_equal(split.images[:, 0].numpy(), arrays[f"{part}-images-idx3-ubyte"][order])
        np.testing.assert_array_equal(split.labels.numpy(), arrays[f"{part}-labels-idx1-ubyte"][order])
    assert indices(loaded.test) == list(range(20))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", IDX_FILES)
def test_a_truncated_file_is_named(tmp_path: Path, name: str, packed: bool) -> None:
    write_idx(tmp_path, 20, 20, packed=packed)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"{path.name}: damaged"):
        load_fashion(validation=0, root=tmp_path)


def test_damaged_and_foreign_idx_files_are_named(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, 20, 20)
    images, labels = (tmp_path / name for name in IDX_FILES[:2])
    contents = {path: path.read_bytes() for path in (images, labels)}
    header = contents[labels][:8]
    damages = [
        (images, contents[images] + b"\0", "damaged: 15681 bytes"),
        (images, b"", "not an IDX file"),
        (images, contents[images][:15], "not an IDX file"),
        (images, b"\x80" + contents[images][1:], "not an IDX file"),
        (images, contents[labels], "in 3 dimension"),
        (
            images,
            contents[images][:8] + np.array([14, 56], ">u4").tobytes() + contents[images][16:],
            "14, 56",
        ),
        (labels, header + arrays[IDX_FILES[1]].tobytes().replace(b"\3", b"\x0a"), "20 labels from 0 to 9"),
        (labels, header[:4] + np.array([19], ">u4").tobytes() + bytes(19), "20 labels from 0 to 9"),
    ]
    for path, content, words in damages:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}: .*{words}"):
            load_fashion(validation=0, root=tmp_path)
        path.write_bytes(contents[path])
    load_fashion(validation=0, root=tmp_path)
    packed = tmp_path / f"{IDX_FILES[0]}.gz"
    images.unlink()
    compressed = bytearray(gzip.compress(contents[images]))
    compressed[len(compressed) // 2] ^= 0xFF
    for content in (bytes(compressed), b"not gzip"):
        packed.write_bytes(content)
        with pytest.raises(ValueError, match=f"{packed.name}: damaged gzip file"):
            load_fashion(validation=0, root=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_unpacks_to_too_much(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, 20, 20, packed=packed)
    monkeypatch.setattr(data, "_LARGEST_IDX", 10_000)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte(\.gz)?: it has more than 10,000 bytes"):
        load_fashion(validation=0, root=tmp_path)


def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    debian = Path("/usr/share/datasets/fashion-mnist")
    if not debian.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    monkeypatch.setattr(data, "_DEBIAN", debian)
    loaded = load_fashion(validation=3000, train=20000)
    assert loaded.source == "Debian package dataset-fashion-mnist"
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (20000, 3000, 10000)
    assert isinstance(loaded.train, splits.MemorySplit) and isinstance(loaded.test, splits.MemorySplit)
    assert loaded.test.labels.bincount().tolist() == [1000] * 10
    inputs, _ = loaded.train.tensors()
    assert abs(inputs.mean()) < 0.01 and abs(inputs.std() - 1) < 0.01


# --- CIFAR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes", "train"), [("cifar10", 10, 20), ("cifar100", 100, 4)])
def test_cifar_is_read_from_torchvisions_layout(
    name: str, classes: int, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = write_cifar(name, tmp_path, monkeypatch)
    loaded = data.load(name, validation=1, root=tmp_path)
    assert (loaded.classes, loaded.shape, len(loaded.test)) == (classes, (3, 32, 32), 4)
    assert isinstance(loaded.train, splits.MemorySplit) and isinstance(loaded.validation, splits.MemorySplit)
    assert (loaded.train.augmentation, loaded.validation.augmentation) == ("crop-flip", "none")
    together = torch.cat([loaded.train.images, loaded.validation.images])
    read = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
    found = zip(together, [*loaded.train.labels.tolist(), *loaded.validation.labels.tolist()], strict=True)
    assert {(image.numpy().tobytes(), label) for image, label in found} == read
    assert len(read) == train


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("which", ["train_list", "test_list", "meta"])
def test_a_damaged_cifar_file_is_named_and_never_unpickled(
    name: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(name, tmp_path, monkeypatch)
    dataset = torchvision.datasets.CIFAR100 if name == "cifar100" else torchvision.datasets.CIFAR10
    file = dataset.meta["filename"] if which == "meta" else getattr(dataset, which)[-1][0]
    (path,) = tmp_path.glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(ValueError, match=f"{file}: damaged, its MD5 sum"):
        data.load(name, validation=1, root=tmp_path)
    path.unlink()
    with pytest.raises(data.DataNotFound, match=f"{tmp_path}: no .*{file}"):
        data.load(name, validation=1, root=tmp_path, download=False)
