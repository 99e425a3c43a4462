"""lpk.data: where data sets are found and how they are split; and splits that are streamed."""

import gzip
import hashlib
import http.server
import os
import pickle
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lpk.data import sets as data
from lpk.data import splits
from tests.data.test_splits import equal, joined

IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder, no LPK_DATA, no Debian package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LPK_DATA", raising=False)
    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "debian")


# --- Fashion-MNIST ---


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


def test_splits_are_disjoint_and_reproducible(tmp_path: Path) -> None:
    write_idx(tmp_path, 1000, 10)
    loaded = load_fashion(validation=100, root=tmp_path)
    train, validation = indices(loaded.train), indices(loaded.validation)
    assert (len(train), len(validation), len(loaded.test)) == (900, 100, 10)
    assert sorted(train + validation) == list(range(1000))
    assert validation != sorted(validation)
    torch.manual_seed(1)
    again = load_fashion(validation=100, root=tmp_path)
    assert (indices(again.train), indices(again.validation)) == (train, validation)
    other = load_fashion(validation=100, root=tmp_path, seed=1)
    assert set(indices(other.validation)) != set(validation)
    small = load_fashion(validation=100, root=tmp_path, train=50)
    assert (indices(small.train), indices(small.validation)) == (train[:50], validation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"validation": 20}, "validation is 20; it must be from 0 to 19"),
        ({"validation": -1}, "validation is -1"),
        ({"validation": 5, "train": 16}, "train is 16; it must be from 1 to 15"),
        ({"validation": 5, "train": 0}, "train is 0"),
    ],
)
def test_split_sizes_must_fit(tmp_path: Path, arguments: dict[str, int], words: str) -> None:
    write_idx(tmp_path, 20, 5)
    with pytest.raises(ValueError, match=words):
        load_fashion(root=tmp_path, **arguments)  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError) as error:
        data.load("mnist", validation=1)
    assert "'mnist'" in str(error.value)
    assert all(name in str(error.value) for name in data.NAMES)


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "root", tmp_path / "named", tmp_path / "xdg" / "lpk", tmp_path / "debian"]
    monkeypatch.setenv("LPK_DATA", str(places[1]))
    for size, place in enumerate(places, start=10):
        write_idx(place, size, 5)
    found = []
    for place in places:
        loaded = load_fashion(validation=0, root=places[0])
        found.append((len(loaded.train), loaded.source))
        (place / IDX_FILES[3]).unlink()  # one file is enough to make a place incomplete
    assert found == [
        (10, "the folder given (--data)"),
        (11, "the folder in LPK_DATA"),
        (12, "the cache folder"),
        (13, "Debian package dataset-fashion-mnist"),
    ]
    with pytest.raises(data.DataNotFound) as error:
        load_fashion(validation=0, root=places[0])
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + len(places) + 1
    for line, place in zip(lines[1:], places, strict=False):
        assert str(place) in line and f"no {IDX_FILES[3]}" in line
    assert "download" in lines[-1]


def test_the_cache_folder_is_in_the_home_folder_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx(tmp_path / ".cache" / "lpk", 10, 5)
    assert load_fashion(validation=0).source == "the cache folder"


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


# --- CIFAR ---


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


# --- downloads ---


def test_without_a_network_a_download_fails_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    for name in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(data.DataNotFound) as error:
            data.load(name, validation=1, root=tmp_path / "empty")
        assert "torchvision's download: " in str(error.value).splitlines()[-1]
        assert "Name or service not known" in str(error.value)
    assert list((tmp_path / "xdg" / "lpk").iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_a_cache_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "xdg").write_text("a file, where a folder should be")
    with pytest.raises(data.DataNotFound, match=r"torchvision's download: .*xdg"):
        data.load("cifar10", validation=1)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder served by HTTP on this machine, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client may hang up before all was sent."""

    (tmp_path / "served").mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def archive(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 behind the address that torchvision downloads from."""
    folder, address = served
    write_cifar("cifar10", folder, monkeypatch)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "url", f"{address}/{path.name}")
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_a_download_lands_in_the_cache_folder(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    incomplete = tmp_path / "xdg" / "lpk" / "cifar-10-batches-py"
    incomplete.mkdir(parents=True)
    (incomplete / "data_batch_2").write_bytes(b"a remainder")
    assert data.load("cifar10", validation=1).source == "torchvision's download"
    assert capfd.readouterr() == ("", "")
    archive.unlink()
    assert data.load("cifar10", validation=1).source == "the cache folder"
    assert [path.name for path in (tmp_path / "xdg" / "lpk").iterdir()] == ["cifar-10-batches-py"]


def test_what_killed_downloads_left_is_removed(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "xdg" / "lpk"
    for name, age in ((".download-old", 100_000.0), (".download-new", 0.0), ("mine-old", 100_000.0)):
        (cache / name).mkdir(parents=True)
        (cache / name / "part").write_bytes(b"x")
        os.utime(cache / name, (time.time() - age,) * 2)
    data.load("cifar10", validation=1)
    assert {path.name for path in cache.iterdir()} >= {".download-new", "mine-old"}
    assert not (cache / ".download-old").exists()


def test_a_partial_download_is_removed(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(data.DataNotFound, match="download: File not found or corrupted"):
        data.load("cifar10", validation=1)
    assert list((tmp_path / "xdg" / "lpk").iterdir()) == []


def test_fashion_mnist_is_downloaded_too(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write_idx(folder, 20, 5, packed=True)
    resources = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in IDX_FILES]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    loaded = data.load("fashion-mnist", validation=5)
    assert (loaded.source, len(loaded.train)) == ("torchvision's download", 15)
    assert load_fashion(validation=5).source == "the cache folder"


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        start = time.monotonic()
        with pytest.raises(data.DataNotFound, match="timed out"):
            data.load("cifar10", validation=1)
        assert time.monotonic() - start < 5  # a limit on waiting, no measure of speed
    assert socket.getdefaulttimeout() is None


# --- ImageNet ---


def write_imagenet(root: Path, each: int = 3) -> None:
    random = np.random.default_rng(3)
    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (root / part / label).mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_imagenet(tmp_path / "images")
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: min(threads, 1))
    return tmp_path / "images"


def in_this_process(split: splits.Split) -> splits.FolderSplit:
    assert isinstance(split, splits.FolderSplit)
    return splits.FolderSplit(split.folder, split.indices, split.training, split.evaluation, workers=0)


def test_imagenet_is_streamed_from_its_folders(imagenet: Path) -> None:
    loaded = data.load("imagenet", validation=2, root=imagenet)
    assert (loaded.classes, loaded.shape) == (2, (3, 224, 224))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (4, 2, 6)
    batches = list(loaded.test.loader(4))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(4, 3, 224, 224), (2, 3, 224, 224)]
    assert all(isinstance(batch, tuple) and batch[0].dtype == torch.float32 for batch in batches)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    train, validation = in_this_process(loaded.train), in_this_process(loaded.validation)
    assert sorted([*train.indices.tolist(), *validation.indices.tolist()]) == list(range(6))
    again = data.load("imagenet", validation=2, root=imagenet)
    assert torch.equal(in_this_process(again.validation).indices, validation.indices)


def test_imagenet_may_be_a_folder_among_others(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "all" / "imagenet")
    assert len(data.load("imagenet", validation=0, root=tmp_path / "all").train) == 6


@pytest.mark.parametrize(("scale", "tolerance"), [(1, 1e-5), (2, 0.03)])
def test_imagenets_evaluation_is_a_central_crop_normalised(tmp_path: Path, scale: int, tolerance: float) -> None:
    write_imagenet(tmp_path)
    across = np.linspace(0, 255, 512).astype(np.uint8)
    picture = np.broadcast_to(across[None, :, None], (256, 512, 3))
    larger = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(larger).save(tmp_path / "val" / "n01" / "0.png")
    test = in_this_process(data.load("imagenet", validation=0, root=tmp_path).test)
    inputs, _ = next(iter(test.loader(1)))
    pixels = across[144:368] / 255  # the middle 224 of 512
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = torch.tensor((pixels - mean) / std).expand(224, 224)
        torch.testing.assert_close(inputs[0, channel].double(), expected, rtol=0, atol=tolerance)


def test_a_seed_alone_decides_streamed_batches(imagenet: Path) -> None:
    train = in_this_process(data.load("imagenet", validation=0, root=imagenet).train)
    torch.manual_seed(0)
    first = joined(train.loader(4, seed=3, augment=True))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert equal(first, joined(train.loader(4, seed=3, augment=True)))
    assert torch.equal(torch.get_rng_state(), before)
    parallel = splits.FolderSplit(train.folder, train.indices, train.training, train.evaluation, workers=2)
    assert equal(first, joined(parallel.loader(4, seed=3, augment=True)))
    assert not torch.equal(first[0], joined(train.loader(4, seed=4, augment=True))[0])
    assert not torch.equal(first[0], joined(train.loader(4, seed=3))[0])
    assert torch.equal(first[1], joined(train.loader(4, seed=3))[1])
    assert len(list(train.loader(4, drop_last=True))) == 1


def test_every_streamed_sample_has_its_own_crop(imagenet: Path) -> None:
    for copy in ("1.png", "2.png"):
        (imagenet / "train" / "n01" / copy).write_bytes((imagenet / "train" / "n01" / "0.png").read_bytes())
    train = in_this_process(data.load("imagenet", validation=0, root=imagenet).train)
    inputs, labels = joined(train.loader(6, seed=1, augment=True))
    same = inputs[labels == 0]
    assert len(same) == 3
    assert not any(torch.equal(same[one], same[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_imagenets_held_out_samples_are_never_augmented(imagenet: Path) -> None:
    loaded = data.load("imagenet", validation=3, root=imagenet)
    for split in (in_this_process(loaded.validation), in_this_process(loaded.test)):
        assert equal(joined(split.loader(4, seed=1, augment=True)), joined(split.loader(4, seed=1)))


def test_streamed_splits_take_and_check_like_the_others(imagenet: Path) -> None:
    train = in_this_process(data.load("imagenet", validation=0, root=imagenet, train=5).train)
    assert torch.equal(train.take(2).indices, train.indices[:2])
    with pytest.raises(ValueError, match="count is 6; it must be from 0 to 5"):
        train.take(6)
    with pytest.raises(ValueError, match="augment=True needs a seed"):
        train.loader(2, augment=True)


def test_a_damaged_image_is_named(imagenet: Path) -> None:
    path = imagenet / "val" / "n02" / "1.png"
    for content in (path.read_bytes()[:200], b"no image"):
        path.write_bytes(content)
        test = in_this_process(data.load("imagenet", validation=0, root=imagenet).test)
        with pytest.raises(ValueError, match=r"n02/1\.png: not a readable image"):
            list(test.loader(6))


def test_imagenet_folders_must_agree_and_are_never_downloaded(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (imagenet / "val" / "n02").rename(imagenet / "val" / "n03")
    with pytest.raises(ValueError, match="train and val must have the same class folders"):
        data.load("imagenet", validation=0, root=imagenet)
    monkeypatch.setattr(data, "_download", None)
    with pytest.raises(data.DataNotFound) as error:
        data.load("imagenet", validation=0, root=tmp_path / "none")
    assert str(tmp_path / "none") in str(error.value) and "no folder train" in str(error.value)


# --- digits ---


def test_digits() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    loaded = data.load("digits", validation=300)
    other = data.load("digits", validation=300, seed=1)
    loaded_splits = [loaded.train, loaded.validation, loaded.test, other.test]
    assert [len(split) for split in loaded_splits] == [1137, 300, 360, 360]
    assert (loaded.classes, loaded.shape, loaded.source) == (10, (1, 8, 8), "scikit-learn")
    memory = [split for split in loaded_splits if isinstance(split, splits.MemorySplit)]
    assert torch.equal(memory[2].images, memory[3].images)
    pixels = torch.cat([split.images for split in memory[:3]])
    labels = torch.cat([split.labels for split in memory[:3]])
    bunch = load_digits()
    originals = sorted((np.rint(i * 255 / 16).tobytes(), t) for i, t in zip(bunch.images, bunch.target, strict=True))
    found = zip(pixels.double().numpy(), labels.tolist(), strict=True)
    assert sorted((image.tobytes(), label) for image, label in found) == originals
    inputs, _ = memory[0].tensors()
    assert abs(inputs.mean()) < 0.02 and abs(inputs.std() - 1) < 0.02


def test_digits_without_scikit_learn_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(data.DataNotFound, match="digits comes with scikit-learn"):
        data.load("digits", validation=300)
