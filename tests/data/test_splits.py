"""lpk.data.splits: normalisation, augmentation, and that a seed decides every batch of a split in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpk.data import splits
from tests.data.batches import equal, joined, numbered


def test_tensors_are_normalised_by_channel() -> None:
    split = numbered(3)
    inputs, labels = split.tensors()
    assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
    for channel, (mean, std) in enumerate(zip(split.mean, split.std, strict=True)):
        by_hand = (split.images[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(inputs[:, channel].double(), by_hand, rtol=1e-5, atol=1e-5)


def test_without_a_seed_batches_come_in_order() -> None:
    split = numbered(10, size=4)
    batches = list(split.loader(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert equal(joined(batches), split.tensors())
    assert [len(labels) for _, labels in split.loader(4, drop_last=True)] == [4, 4]
    assert [len(labels) for _, labels in split.loader(5, drop_last=True)] == [5, 5]


def test_a_seed_shuffles_the_samples_without_losing_one() -> None:
    split = numbered(50, size=4)
    inputs, labels = joined(split.loader(8, seed=1))
    assert sorted(labels.tolist()) == list(range(50))
    assert labels.tolist() != list(range(50))
    assert torch.equal(inputs, split.tensors()[0][labels])
    assert not torch.equal(joined(split.loader(8, seed=2))[1], labels)


@pytest.mark.parametrize("augment", [False, True])
def test_a_seed_alone_decides_the_batches(augment: bool) -> None:
    loader = numbered(20, augmentation="crop-flip").loader(8, seed=3, augment=augment)
    torch.manual_seed(0)
    first = joined(loader)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert equal(first, joined(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_draws_the_same_batches() -> None:
    program = (
        "import torch; from tests.data.batches import joined, numbered; torch.manual_seed(99);"
        "x, y = joined(numbered(20, augmentation='crop-flip').loader(8, seed=3, augment=True));"
        "print(x.double().sum().item(), y.tolist())"
    )
    root = Path(__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    x, y = joined(numbered(20, augmentation="crop-flip").loader(8, seed=3, augment=True))
    assert there.stdout.strip() == f"{x.double().sum().item()} {y.tolist()}"


def test_augmented_images_are_crops_of_the_padded_ones_half_of_them_mirrored() -> None:
    split = numbered(200, size=8, augmentation="crop-flip")
    padded = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    padded[:, :, 4:12, 4:12] = split.images
    inputs, labels = joined(split.loader(64, seed=1, augment=True))
    found = []
    for image, label in zip(inputs, labels.tolist(), strict=True):
        crops = [(t, f, padded[label, :, t // 9 :, t % 9 :][:, :8, :8]) for t in range(81) for f in (False, True)]
        candidates = torch.stack([crop.flip(2) if mirrored else crop for _, mirrored, crop in crops])
        matches = (split.normalise(candidates) == image).flatten(1).all(1).nonzero().flatten().tolist()
        assert len(matches) == 1
        found.append(crops[matches[0]][:2])
    assert 70 <= sum(mirrored for _, mirrored in found) <= 130  # five standard deviations around 100
    assert {corner // 9 for corner, _ in found} == {corner % 9 for corner, _ in found} == set(range(9))


def test_the_batch_size_does_not_change_a_samples_augmentation() -> None:
    split = numbered(30, augmentation="crop-flip")
    assert equal(joined(split.loader(7, seed=4, augment=True)), joined(split.loader(30, seed=4, augment=True)))


def test_augment_does_nothing_where_there_is_no_augmentation() -> None:
    split = numbered(10)
    assert equal(joined(split.loader(4, seed=4, augment=True)), joined(split.loader(4, seed=4)))


def test_take_keeps_the_first_samples() -> None:
    split = numbered(10, augmentation="crop-flip")
    inputs, labels = split.tensors()
    assert equal(split.take(4).tensors(), (inputs[:4], labels[:4]))
    assert split.take(4).augmentation == "crop-flip"
    assert len(split.take(10)) == 10
    for count in (11, -1):
        with pytest.raises(ValueError, match=f"count is {count}; it must be from 0 to 10"):
            split.take(count)


def test_loader_names_wrong_arguments() -> None:
    split = numbered(4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        split.loader(0)
    with pytest.raises(ValueError, match="augment=True needs a seed"):
        split.loader(2, augment=True)
    with pytest.raises(ValueError, match="seed is -1"):
        split.loader(2, seed=-1)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "images is torch.float32"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), "images is torch.uint8 \\[2, 4, 4\\]"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), "labels is .* not int64 \\[2\\]"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), "labels is torch.float32"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), "1 channel"),
    ],
)
def test_a_memory_split_names_a_wrong_shape_or_dtype(images: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        splits.MemorySplit(images, labels, (0.5,) * 3, (0.5,) * 3)


def test_wrong_labels_are_a_seeded_share_evenly_among_the_other_classes() -> None:
    labels = torch.arange(20_000) % 5
    wrong = splits.mislabelled(labels, 5, 0.4, seed=3)
    changed = wrong != labels
    assert changed.sum() == 8000 and wrong.min() == 0 and wrong.max() == 4
    counts = torch.zeros(5, 5).index_put((labels[changed], wrong[changed]), torch.ones(8000), accumulate=True)
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(5, dtype=torch.bool)]  # 400 each, within five standard deviations
    assert others.min() > 300 and others.max() < 500
    torch.manual_seed(0)
    assert torch.equal(splits.mislabelled(labels, 5, 0.4, seed=3), wrong)
    assert not torch.equal(splits.mislabelled(labels, 5, 0.4, seed=4), wrong)
    fewer = splits.mislabelled(labels, 5, 0.1, seed=3)
    assert (fewer != labels).sum() == 2000 and torch.equal(fewer[fewer != labels], wrong[fewer != labels])
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="label_noise is"):
            splits.mislabelled(labels, 5, share, seed=3)
