"""lpk.data.decoded: validation and test samples are decoded once, whoever reads them; a file is whole or not used."""

import logging
import os
import weakref
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from lpk.data import corruptions, decoded, sets
from lpk.data.feed import feed
from lpk.data.splits import FolderSplit
from lpk.distributed import Part
from tests.data.batches import equal, joined
from tests.data.small_sets import write_imagenet
from tests.data.test_streaming import counted

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_imagenet(tmp_path / "images")
    return tmp_path / "images"


def held_out(root: Path, seed: int = 0) -> FolderSplit:
    split = sets.load("imagenet", validation=4, root=root, seed=seed).validation
    assert isinstance(split, FolderSplit)
    return replace(split, workers=0)


def kept() -> list[Path]:
    return sorted((sets.cache_folder() / "decoded").glob("*.npy"))


def left() -> list[str]:
    return sorted(os.listdir(sets.cache_folder() / "decoded"))


def test_samples_are_decoded_once_and_stay_what_they_were(root: Path) -> None:
    split = held_out(root)
    read = counted(split)
    streamed = replace(split, decoded=None)
    expected = [joined(streamed.loader(3, seed=seed)) for seed in (None, 5)]
    read.clear()
    few = split.take(2)
    loader = split.loader(3)
    assert len(kept()) == 0  # nothing is read before it is asked for
    for _ in range(2):
        assert equal(joined(few.loader(2)), joined(streamed.take(2).loader(2)))
        assert equal(joined(loader), expected[0]) and equal(joined(split.loader(3, seed=5)), expected[1])
        assert [len(labels) for _, labels in split.loader(3, drop_last=True)] == [3]
    by_ranks = [joined(split.pixels(4, augment=False, part=Part(rank, 2))(5)) for rank in range(2)]
    assert equal(joined(by_ranks), joined(streamed.pixels(4, augment=False)(5)))
    made = feed(split, torch.device("cpu"), 3, augment=False)
    assert equal(joined(made.batch(*inputs) for inputs in made.epoch(5)), expected[1])
    (file,) = kept()
    assert file.name.startswith("imagenet-validation-") and file.stat().st_size > 4 * 3 * 224 * 224
    assert len(read) == 4 + 2 * 2 + 4  # the file; the rest is what was expected

    again = held_out(root)
    read = counted(again)
    assert equal(joined(again.loader(3)), expected[0]) and read == []


def test_wrong_labels_and_corruptions_are_their_own(root: Path) -> None:
    split = held_out(root)
    list(split.loader(4))
    other = split.relabelled(1 - split.labels)
    assert torch.equal(joined(other.loader(4))[1], 1 - split.labels)
    data = sets.load("imagenet", validation=0, root=root)
    clean = joined(data.test.loader(4))
    files = kept()
    assert len(files) == 2
    blurred = joined(corruptions.corrupted(data, "blur", 5).loader(4))
    assert not torch.equal(blurred[0], clean[0]) and kept() == files
    list(data.train.loader(4))
    assert kept() == files


def test_other_samples_are_another_file(root: Path) -> None:
    def names(split: FolderSplit) -> list[str]:
        before = {*kept()}
        list(split.loader(4))
        return [path.name for path in kept() if path not in before]

    split = held_out(root)
    assert len(names(split)) == 1 and names(held_out(root)) == []
    assert len(names(held_out(root, seed=1))) == 1
    assert len(names(split.kept_in(sets.cache_folder() / "decoded", "imagenet-validation", "another version"))) == 1
    smaller = replace(split, evaluation=v2.Compose([v2.Resize(64), v2.CenterCrop(32)]))
    assert len(names(smaller.kept_in(sets.cache_folder() / "decoded", "imagenet-validation", ""))) == 1
    path, _ = split.folder.samples[int(split.indices[0])]
    os.utime(path, ns=(1, 1))
    assert len(names(held_out(root))) == 1
    os.remove(path)
    with pytest.raises(ValueError, match="not a readable image"):
        list(split.kept_in(sets.cache_folder() / "decoded", "imagenet-validation", "").loader(4))


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "no header", "other shape", "other numbers", "zip"])
def test_a_damaged_file_is_made_again(root: Path, damage: str) -> None:
    expected = joined(held_out(root).loader(4))
    (path,) = kept()
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-1],
            "longer": content + b"0",
            "empty": b"",
            "no header": b"\0" * 128 + content[128:],
            "other shape": content.replace(b"(4, 3, 224, 224)", b"(3, 4, 224, 224)"),
            "other numbers": content.replace(b"|u1", b"|i1"),
            "zip": b"PK\3\4" + content[4:],
        }[damage]
    )
    assert path.read_bytes() != content
    split = held_out(root)
    read = counted(split)
    assert equal(joined(split.loader(4)), expected) and len(read) == 4
    assert path.read_bytes() == content


def test_without_room_samples_are_decoded_at_every_pass(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = 4 * 3 * 224 * 224
    free = size + decoded.SPARE - 1
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, free))
    split = held_out(root)
    expected = joined(replace(split, decoded=None).loader(4))
    for _ in range(2):
        assert equal(joined(split.loader(4)), expected)
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING and "4 samples, decoded 0.0 GB, are decoded at every pass" in record.message
    )
    assert kept() == []
    free += 1
    caplog.set_level(logging.INFO, logger="lpk")
    assert equal(joined(held_out(root).loader(4)), expected)
    assert caplog.records[-1].message.endswith(f"decoded 0.0 GB, once, into {kept()[0]}")


def test_where_nothing_can_be_written_samples_are_decoded_at_every_pass(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = joined(replace(held_out(root), decoded=None).loader(4))
    sets.cache_folder().mkdir(parents=True)
    (sets.cache_folder() / "decoded").touch()
    assert equal(joined(held_out(root).loader(4)), expected)
    (sets.cache_folder() / "decoded").unlink()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert equal(joined(held_out(root).loader(4)), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "is a file" in caplog.text and "No space left on device" in caplog.text and left() == [".lock"]


def test_an_interrupt_leaves_nothing_behind(root: Path) -> None:
    split = held_out(root)
    load, calls = split.folder.loader, SimpleNamespace(count=0)

    def interrupted(path: str) -> Any:
        calls.count += 1
        if calls.count == 3:
            raise KeyboardInterrupt
        return load(path)

    split.folder.loader = interrupted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpk.data.splits._DECODED", 2)  # samples at a time: the file is begun
        with pytest.raises(KeyboardInterrupt):
            list(split.loader(4))
    assert left() == [".lock"]
    assert len(list(split.loader(4))) == 1 and len(kept()) == 1 and calls.count == 7


def test_batches_are_written_as_they_come(tmp_path: Path) -> None:
    """All of them together are more than fits in memory."""
    (tmp_path / "image").touch()
    made, most = [], 0

    def batches() -> Iterator[torch.Tensor]:
        nonlocal most
        for number in range(6):
            batch = torch.full((1, 3, 2, 2), number, dtype=torch.uint8)
            made.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in made))
            yield batch

    samples = decoded.Decoded(tmp_path / "kept", "six", tmp_path, ["image"] * 6, torch.arange(6), "", torch.clone)
    assert samples.is_there(batches) and most <= 3
    assert samples.read(torch.tensor([4, 1]))[:, 0, 0, 0].tolist() == [4, 1]


def test_of_several_that_need_a_file_one_makes_it(root: Path) -> None:
    splits = [held_out(root) for _ in range(3)]
    read = [counted(split) for split in splits]
    with ThreadPoolExecutor(3) as threads:
        batches = list(threads.map(lambda split: joined(split.loader(4)), splits))
    assert all(equal(batches[0], other) for other in batches[1:])
    assert sorted(map(len, read)) == [0, 0, 4]


def test_no_samples_are_no_file(root: Path) -> None:
    split = sets.load("imagenet", validation=0, root=root).validation
    assert list(split.loader(4)) == [] and not (sets.cache_folder() / "decoded").exists()
