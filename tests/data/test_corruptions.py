"""lpk.data.corruptions: CIFAR's files as they are published, and what is made for other data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lpk.data import corruptions
from lpk.data import sets as data
from lpk.data.splits import FolderSplit, MemorySplit

COUNT = 6


def made_up(name: str, channels: int = 3, size: int = 32) -> data.Data:
    """Test samples that look like pictures: a gradient with a bright square."""
    images = torch.linspace(60, 180, size).expand(COUNT, channels, size, size).clone()
    images[:, :, size // 4 : size // 2, size // 4 : size // 2] += torch.arange(COUNT)[:, None, None, None] * 10.0
    statistics = ((0.5,) * channels, (0.25,) * channels)
    split = MemorySplit(images.to(torch.uint8), torch.arange(COUNT), *statistics)
    return data.Data(name, "made up", 10, (channels, size, size), split, split, split)


@pytest.fixture
def cifar_c(tmp_path: Path) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "labels.npy", np.tile(generator.integers(0, 10, COUNT, dtype=np.uint8), 5))
    for name in corruptions.FILES:
        np.save(folder / f"{name}.npy", generator.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8))
    return folder


def test_cifar_c_is_read_as_published(cifar_c):
    assert len(corruptions.names("cifar10")) == 15
    images, labels = np.load(cifar_c / "fog.npy"), np.load(cifar_c / "labels.npy")
    for root in (cifar_c, cifar_c.parent):
        split = corruptions.corrupted(made_up("cifar10"), "fog", 3, root=root)
        third = slice(2 * COUNT, 3 * COUNT)
        np.testing.assert_array_equal(split.images.permute(0, 2, 3, 1).numpy(), images[third])
        np.testing.assert_array_equal(split.labels.numpy(), labels[third])
        assert split.mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\x93NUMPY nonsense"), "not a .npy file"),
        (lambda path: np.save(path, np.zeros((5 * COUNT, 32, 32, 3))), "uint8"),
        (lambda path: np.save(path, np.zeros((4 * COUNT, 32, 32, 3), np.uint8)), "labels are needed"),
        (lambda path: np.save(path, np.array([{}] * 30, dtype=object), allow_pickle=True), "not a .npy file"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_damaged_file_is_named(cifar_c, damage, message):
    damage(cifar_c / "fog.npy")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        corruptions.corrupted(made_up("cifar10"), "fog", 1, root=cifar_c)
    assert "fog" in str(error.value)


def test_absent_files_and_wrong_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LPK_DATA", raising=False)
    with pytest.raises(data.DataNotFound, match="CIFAR-100-C is in none"):
        corruptions.corrupted(made_up("cifar100"), "fog", 1)
    with pytest.raises(ValueError, match="'fog' of severity 1; there are noise"):
        corruptions.corrupted(made_up("digits"), "fog", 1)
    with pytest.raises(ValueError, match="severity 6"):
        corruptions.corrupted(made_up("digits"), "blur", 6)


@pytest.mark.parametrize("name", corruptions.MADE)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_made_corruptions_are_the_same_every_time_and_grow(name, channels, size):
    given = made_up("digits", channels, size)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    distances = []
    for severity in corruptions.SEVERITIES:
        split = corruptions.corrupted(given, name, severity)
        again = corruptions.corrupted(given, name, severity)
        assert torch.equal(split.images, again.images) and torch.equal(split.labels, given.test.labels)
        assert split.images.dtype == torch.uint8 and split.images.shape == given.test.images.shape
        distances.append(float((split.images.float() - given.test.images.float()).abs().mean()))
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < distances[0] < distances[-1]
    if name in ("noise", "contrast", "brightness"):
        assert distances == sorted(distances)


def test_arithmetic_of_the_simple_corruptions():
    images = made_up("digits", 3, 32).test.images
    noise = corruptions.corrupt(images[:1].expand(200, -1, -1, -1).contiguous(), "noise", 2, seed=1).double() / 255
    inside = noise[:, :, 4:, 4:28]
    assert float(inside.std(0).mean()) == pytest.approx(0.1, rel=0.03)
    factor = corruptions.MADE["brightness"].strengths[0]
    brighter = corruptions.corrupt(images, "brightness", 1)
    torch.testing.assert_close(brighter.float(), (images * factor).clamp(0, 255), atol=1, rtol=0)
    flat = corruptions.corrupt(images, "pixelate", 5)
    assert len(flat[0, 0].unique()) < len(images[0, 0].unique())
    square = torch.full((4, 1, 16, 16), 90, dtype=torch.uint8)
    for name in ("blur", "contrast", "pixelate", "jpeg"):
        assert (corruptions.corrupt(square, name, 5).int() - 90).abs().max() <= (5 if name == "jpeg" else 1), name


def test_elastic_moves_every_image_by_a_field_of_its_own():
    images = made_up("digits", 1, 28).test.images[:1].repeat(3, 1, 1, 1)
    moved = corruptions.corrupt(images, "elastic", 3, seed=0)
    assert not torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])


def test_a_folder_is_corrupted_sample_by_sample(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    evaluation = v2.Compose([v2.Resize(36), v2.CenterCrop(32), v2.PILToTensor()])
    folder = FolderSplit(ImageFolder(tmp_path), torch.arange(6), evaluation, evaluation, (0.5,) * 3, (0.5,) * 3)
    given = replace(made_up("imagenet"), test=folder)
    batches = [list(corruptions.corrupted(given, "noise", 2).loader(4, seed=0)) for _ in range(2)]
    clean = list(folder.loader(4, seed=0))
    for (a, labels), (b, _), (c, same) in zip(*batches, clean, strict=True):
        assert torch.equal(a, b) and torch.equal(labels, same) and not torch.equal(a, c)
        assert a.dtype == torch.float32 and a.shape == c.shape
