"""lpk.data.sets: where data sets are found and how they are split; digits, which come with scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lpk.data import sets as data
from lpk.data import splits
from tests.data.small_sets import IDX_FILES, indices, load_fashion, write_idx


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


def test_wrong_labels_are_in_the_training_set_alone(tmp_path: Path) -> None:
    write_idx(tmp_path, 1000, 50)
    clean = load_fashion(validation=100, root=tmp_path)
    noisy = load_fashion(validation=100, root=tmp_path, label_noise=0.2)
    assert indices(noisy.train) == indices(clean.train)
    assert (labels(noisy.train) != labels(clean.train)).sum() == 180
    assert torch.equal(labels(noisy.validation), labels(clean.validation))
    assert torch.equal(labels(noisy.test), labels(clean.test))
    assert torch.equal(labels(load_fashion(validation=100, root=tmp_path, label_noise=0.2).train), labels(noisy.train))
    few = load_fashion(validation=100, root=tmp_path, train=50, label_noise=0.2)
    assert (labels(few.train) != labels(clean.train)[:50]).sum() == 10
    with pytest.raises(ValueError, match=r"label_noise is 1.0; it must be at least 0 and less than 1"):
        load_fashion(validation=100, root=tmp_path, label_noise=1.0)


def labels(split: splits.Split) -> torch.Tensor:
    assert isinstance(split, splits.MemorySplit)
    return split.labels


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


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    loaded = data.load("digits", validation=300)
    other = data.load("digits", validation=300, seed=1)
    loaded_splits = [loaded.train, loaded.validation, loaded.test, other.test]
    assert [len(split) for split in loaded_splits] == [1137, 300, 360, 360]
    assert data.TRAINING["digits"] == 1137 + 300
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
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="the data set digits needs sklearn"):
        data.load("digits", validation=300)
