"""lpk.data.streaming: what the processes that read a folder read, and how long they stay."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lpk.data import sets
from lpk.data.feed import feed
from lpk.data.splits import FolderSplit
from lpk.distributed import Part
from tests.data.small_sets import write_imagenet

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> FolderSplit:
    write_imagenet(tmp_path, each=5)
    split = sets.load("imagenet", validation=0, root=tmp_path).train
    assert isinstance(split, FolderSplit)
    return replace(split, workers=0)


def counted(split: FolderSplit) -> list[str]:
    """The files that are decoded from now on."""
    found, load = [], split.folder.loader

    def loader(path: str) -> Any:
        found.append(path)
        return load(path)

    split.folder.loader = loader
    return found


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_ranks_parts_make_one_processs_batches(folder: FolderSplit, ranks: int, augment: bool) -> None:
    """Batches of 4, 4 and 2 samples, so that with more ranks some have none of the last, and read one all the same."""
    whole = list(folder.pixels(4, augment=augment)(3))
    parts = [list(folder.pixels(4, augment=augment, part=Part(rank, ranks))(3)) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        own = [part[step] for rank, part in enumerate(parts) if Part(rank, ranks).weight(len(batch[1]))]
        assert all(torch.equal(torch.cat(mine), all_) for mine, all_ in zip(zip(*own, strict=True), batch, strict=True))
    assert {len(part) for part in parts} == {len(whole)}


def test_a_rank_decodes_its_own_samples_alone(folder: FolderSplit) -> None:
    decoded = counted(folder)
    read = []
    for rank in range(2):
        for inputs in (own := feed(folder, CPU, 4, augment=True, part=Part(rank, 2))).epoch(1):
            own.batch(*inputs)
        read.append(list(decoded))
        decoded.clear()
    assert len(read[0]) == len(read[1]) == 5
    assert sorted(read[0] + read[1]) == sorted(path for path, _ in folder.folder.samples)


def reader(image: Tensor) -> Tensor:
    """The process that calls it, in four pixels."""
    return torch.tensor(list(os.getpid().to_bytes(4)), dtype=torch.uint8)[None, None]


def test_the_processes_stay_from_epoch_to_epoch(folder: FolderSplit) -> None:
    split = replace(folder, evaluation=reader, workers=2)
    pixels = split.pixels(2, augment=False)
    epochs = [{tuple(row) for images, _ in pixels(seed) for row in images.flatten(1).tolist()} for seed in (1, 2)]
    assert epochs[0] == epochs[1] and len(epochs[0]) == 2
    another = {tuple(row) for images, _ in split.pixels(2, augment=False)(1) for row in images.flatten(1).tolist()}
    assert not another & epochs[0]


def test_loaders_say_how_many_batches_they_have(folder: FolderSplit) -> None:
    for size, drop_last in ((4, False), (4, True), (5, True), (11, True)):
        loader = folder.loader(size, drop_last=drop_last)
        assert len(loader) == len(list(loader))  # type: ignore[arg-type]
