"""ImageNet: images that are streamed from folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lpk.data import imagenet as images
from lpk.data import sets as data
from lpk.data import splits
from lpk.data.preparation import generator
from tests.data.batches import equal, joined
from tests.data.small_sets import write_imagenet


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_imagenet(tmp_path / "images")
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: min(threads, 1))
    return tmp_path / "images"


def in_this_process(split: splits.Split) -> splits.FolderSplit:
    assert isinstance(split, splits.FolderSplit)
    return replace(split, workers=0)


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
    parallel = replace(train, workers=2)
    assert equal(first, joined(parallel.loader(4, seed=3, augment=True)))
    assert not torch.equal(first[0], joined(train.loader(4, seed=4, augment=True))[0])
    assert not torch.equal(first[0], joined(train.loader(4, seed=3))[0])
    assert torch.equal(first[1], joined(train.loader(4, seed=3))[1])
    assert len(list(train.loader(4, drop_last=True))) == 1


@pytest.mark.parametrize("augment", [False, True])
def test_streamed_batches_are_what_torchvisions_transforms_make(imagenet: Path, augment: bool) -> None:
    """The bits of those of tensors; of its first ones, which resize Pillow's images, up to a level of 255."""
    train = in_this_process(data.load("imagenet", validation=0, root=imagenet).train)
    crop_flip = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    central = [v2.Resize(256), v2.CenterCrop(224)]
    of_tensors = v2.Compose(crop_flip if augment else central)
    crop_flip = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    central = [transforms.Resize(256), transforms.CenterCrop(224)]
    of_pillow = transforms.Compose([*(crop_flip if augment else central), transforms.PILToTensor()])
    pixels = train.pixels(4, augment=augment)
    for seed in range(4):
        images, labels = joined(pixels(seed))
        order = torch.randperm(6, generator=generator(seed))
        for image, label, index in zip(images, labels, train.indices[order].tolist(), strict=True):
            path, expected = train.folder.samples[index]
            assert label == expected
            picture, drawn = Image.open(path).convert("RGB"), generator(seed, index).initial_seed()
            torch.manual_seed(drawn)
            assert torch.equal(image, of_tensors(F.pil_to_tensor(picture)))
            torch.manual_seed(drawn)
            assert (image.int() - of_pillow(picture).int()).abs().max() <= 1


def test_large_pictures_are_cropped_as_torchvision_does() -> None:
    """Where the channels lie side by side, and stay so."""
    picture = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8).permute(2, 0, 1)
    for seed in range(4):
        torch.manual_seed(seed)
        expected = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])(picture)
        torch.manual_seed(seed)
        cropped = images.training()(picture)
        assert torch.equal(cropped, expected) and cropped.stride()[0] == 1
    assert images.evaluation()(picture).stride()[0] == 1


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "grayscale", "cmyk", "png", "palette", "transparent"])
def test_every_kind_of_file_has_the_pixels_that_pillow_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Under ImageNet's one name for all of them."""
    blocks = np.random.default_rng(4).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(np.kron(blocks, np.ones((9, 9, 1), np.uint8)))
    modes = {"grayscale": "L", "cmyk": "CMYK", "palette": "P", "transparent": "RGBA"}
    picture = picture.convert(modes.get(kind, "RGB"))
    file = tmp_path / "n01_1.JPEG"
    options = {"progressive": True} if kind == "progressive" else {}
    picture.save(file, "PNG" if kind in ("png", "palette", "transparent") else "JPEG", **options)
    read = images.read(str(file))
    assert read.dtype == torch.uint8 and tuple(read.shape) == (3, 45, 63)
    assert torch.equal(read, F.pil_to_tensor(Image.open(file).convert("RGB")))
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert torch.equal(images.read(str(file)), read)


def test_a_transform_that_returns_something_else_is_named(imagenet: Path) -> None:
    train = in_this_process(data.load("imagenet", validation=0, root=imagenet).train)
    split = replace(train, training=v2.ToDtype(torch.float32, scale=True))
    with pytest.raises(ValueError, match=r"a transform returned torch.float32 \[3, .*\], not uint8 \[C, H, W\]"):
        list(split.loader(4, seed=0, augment=True))


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


def test_streamed_splits_have_wrong_labels_in_the_training_set_alone(imagenet: Path) -> None:
    clean = data.load("imagenet", validation=2, root=imagenet)
    noisy = data.load("imagenet", validation=2, root=imagenet, label_noise=0.5)

    def streamed(split: splits.Split) -> torch.Tensor:
        return joined(in_this_process(split).loader(8))[1]

    assert (streamed(noisy.train) != streamed(clean.train)).sum() == 2
    assert torch.equal(streamed(noisy.validation), streamed(clean.validation))
    assert torch.equal(in_this_process(noisy.train).labels, streamed(noisy.train))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(imagenet: Path, workers: int) -> None:
    path = imagenet / "val" / "n02" / "1.png"
    Image.open(path).save(path, "JPEG")  # whatever its name
    for content in (path.read_bytes()[:200], path.read_bytes()[:-2], b"no image", b""):
        path.write_bytes(content)
        test = replace(in_this_process(data.load("imagenet", validation=0, root=imagenet).test), workers=workers)
        for read in (lambda: list(test.loader(6)), lambda: list(test.pixels(6, augment=False)(0))):  # noqa: B023
            with pytest.raises(ValueError, match=r"n02/1\.png: not a readable image") as error:
                read()
            assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("threads", "cores", "processes", "workers"),
    [(6, 12, 1, 6), (1, 12, 4, 3), (1, 2, 4, 1), (4, 12, 4, 4), (99, 99, 1, 32)],
)
def test_processes_of_torchrun_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(data.os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert data._workers() == workers


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
