"""lpk.data.feed: whichever way batches take to a device, they are the loader's, as a seed decides them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpk.data import feed as feeds
from lpk.data import sets, splits
from lpk.data.feed import Feed, Moved, Resident, Streamed, feed, stream_memory
from lpk.data.preparation import Batch, Gather, Normalise
from tests.data.batches import numbered
from tests.data.small_sets import write_imagenet

CPU = torch.device("cpu")
SIZE = 8  # of batches: three of them, the last one of five samples
AUGMENT = pytest.mark.parametrize("augment", [False, True])
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")]


def crop_flip(channels: int = 3) -> splits.MemorySplit:
    split = numbered(2 * SIZE + 5, size=12, augmentation="crop-flip")
    return replace(split, images=split.images[:, :channels], mean=split.mean[:channels], std=split.std[:channels])


class Own:
    """A split of somebody's own, which has what `Split` asks for and nothing else."""

    def __init__(self, split: splits.MemorySplit, *, flat: bool = False) -> None:
        self.split, self.flat = split, flat

    def __len__(self) -> int:
        return len(self.split)

    def loader(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        for inputs, labels in self.split.loader(batch_size, **options):
            yield (inputs.flatten(1) if self.flat else inputs), labels

    def take(self, count: int) -> "Own":
        return Own(self.split.take(count), flat=self.flat)


@pytest.fixture
def folder(tmp_path: Path) -> splits.FolderSplit:
    write_imagenet(tmp_path, each=SIZE + 2)
    split = sets.load("imagenet", validation=0, root=tmp_path).train
    assert isinstance(split, splits.FolderSplit)
    return replace(split, workers=0)


def by_hand(split: splits.MemorySplit, seed: int, augment: bool) -> Iterator[Batch]:
    """What a trainer's batches have always been: a sample at a time, with nothing of lpk."""
    drawn = torch.Generator().manual_seed(int(np.random.SeedSequence((seed,)).generate_state(1)[0]))
    order = torch.randperm(len(split), generator=drawn)
    corners = torch.randint(0, 9, (len(split), 2), generator=drawn)
    mirrored = torch.rand(len(split), generator=drawn) < 0.5
    _, channels, height, width = split.images.shape
    mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))
    for chosen in order.split(SIZE):
        images = []
        for sample in chosen:
            image = split.images[sample]
            if augment:
                padded = torch.zeros(channels, height + 8, width + 8, dtype=torch.uint8)
                padded[:, 4:-4, 4:-4] = image
                top, left = corners[sample].tolist()
                image = padded[:, top : top + height, left : left + width]
                image = image.flip(2) if mirrored[sample] else image
            images.append((image.float() / 255 - mean) / std)
        yield torch.stack(images).contiguous(memory_format=torch.channels_last), split.labels[chosen]


def same(feed: Feed, expected: Iterator[Batch], seed: int) -> None:
    """In bits and in strides."""
    fed = [feed.batch(*inputs) for inputs in feed.epoch(seed)]
    assert len(fed) == feed.steps
    for ours, theirs in zip(fed, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.cpu(), b)


def as_trained(split: splits.Split, seed: int, augment: bool, size: int = SIZE) -> Iterator[Batch]:
    for inputs, labels in split.loader(size, seed=seed, augment=augment):
        yield inputs.contiguous(memory_format=torch.channels_last), labels


@AUGMENT
@pytest.mark.parametrize("channels", [1, 3])
def test_a_split_in_memory_is_fed_as_it_always_was(channels: int, augment: bool) -> None:
    split = crop_flip(channels)
    made = feed(split, CPU, SIZE, augment=augment)
    assert isinstance(made, Resident) and made.steps == 3
    for seed in (3, 4):
        same(made, by_hand(split, seed, augment), seed)
        same(made, as_trained(split, seed, augment), seed)


@AUGMENT
@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_that_does_not_fit_is_fed_alike(workers: int, augment: bool) -> None:
    split = crop_flip()
    before = torch.get_rng_state()
    same(stream_memory(split, CPU, SIZE, augment=augment, workers=workers), by_hand(split, 3, augment), 3)
    assert torch.equal(torch.get_rng_state(), before)


@AUGMENT
@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_fed_alike(folder: splits.FolderSplit, workers: int, augment: bool) -> None:
    split = replace(folder, workers=workers)
    made = feed(split, CPU, SIZE, augment=augment)
    assert isinstance(made, Streamed)
    images, _ = next(made.epoch(3))
    assert images.dtype == torch.uint8 and images.is_contiguous(memory_format=torch.channels_last)
    for seed in (3, 4):  # the first epoch is begun and given up
        same(made, as_trained(folder, seed, augment), seed)


def test_a_split_of_ones_own_is_fed_its_batches() -> None:
    class Special(splits.MemorySplit):
        """May have a loader of its own."""

    for split in (Own(crop_flip()), Special(**vars(crop_flip()))):
        made = feed(split, CPU, SIZE, augment=True)
        assert isinstance(made, Moved)
        same(made, by_hand(crop_flip(), 3, True), 3)


def test_inputs_that_are_no_images_stay_as_they_are() -> None:
    flat = Own(crop_flip(), flat=True)
    same(feed(flat, CPU, SIZE, augment=True), flat.loader(SIZE, seed=3, augment=True), 3)


def test_nothing_is_augmented_where_the_split_has_no_augmentation() -> None:
    split = replace(crop_flip(), augmentation="none")
    same(feed(split, CPU, SIZE, augment=True), by_hand(split, 3, False), 3)
    same(stream_memory(split, CPU, SIZE, augment=True, workers=0), by_hand(split, 3, False), 3)


def test_where_memory_fails_a_split_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(feeds, "Resident", full)
    made = feed(crop_flip(), CPU, SIZE, augment=True)
    assert isinstance(made, Streamed)
    same(made, by_hand(crop_flip(), 3, True), 3)


def test_a_split_takes_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    split = crop_flip()
    size = split.images.numel() + 8 * len(split)
    for free, fits in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 1 << 40))
        assert feeds._fits(split, torch.device("cuda")) is fits


def test_a_batch_of_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        feed(crop_flip(), CPU, 0, augment=False)


def test_pixels_are_divided_as_they_always_were() -> None:
    pixels = torch.arange(256).to(torch.uint8)[None, :, None]
    expected = pixels.float().div(255).sub(torch.tensor(0.4)).div(torch.tensor(0.3))
    assert torch.equal(Normalise((0.4,), (0.3,), CPU)(pixels), expected)


class _OnDevice(TorchDispatchMode):
    """Fails where an operation has a tensor of the host, makes one of the host's numbers, or reads one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        assert all(x.device.type == "cuda" for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)), func
        assert str(func) not in ("aten.lift_fresh.default", "aten._local_scalar_dense.default"), func
        return made


def test_a_batch_is_made_of_the_device_alone() -> None:
    """Without one: PyTorch's fake tensors know where they would be."""
    device = torch.device("cuda:0")
    with FakeTensorMode(allow_non_fake_inputs=True):
        gather = Gather(*(getattr(crop_flip(), name) for name in ("images", "labels")), device)
        normalise = Normalise((0.5,) * 3, (0.2,) * 3, device)
        drawn = (torch.zeros(SIZE, dtype=torch.int64), torch.zeros(SIZE, 2, dtype=torch.int64), torch.zeros(SIZE) > 0)
        inputs = [each.to(device) for each in drawn]
        with _OnDevice():
            images, labels = gather(*inputs)
            assert normalise(images).device == labels.device == device


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def on_gpu(kind: str, folder: splits.FolderSplit, augment: bool, size: int = SIZE) -> tuple[Feed, splits.Split]:
    device = torch.device("cuda")
    if kind == "streamed":
        return stream_memory(crop_flip(), device, size, augment=augment, workers=2), crop_flip()
    split: Any = {"resident": crop_flip(), "folder": folder, "moved": Own(crop_flip())}[kind]
    return feed(split, device, size, augment=augment), split


KINDS = {"resident": Resident, "streamed": Streamed, "folder": Streamed, "moved": Moved}


@AUGMENT
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=gpu) for kind in KINDS])
def test_a_gpu_is_fed_the_cpus_bits(kind: str, augment: bool, folder: splits.FolderSplit) -> None:
    made, split = on_gpu(kind, folder, augment)
    assert isinstance(made, KINDS[kind])
    for seed in (3, 4):
        same(made, as_trained(split, seed, augment), seed)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=gpu) for kind in KINDS])
def test_inputs_stay_while_the_gpu_is_behind(kind: str, folder: splits.FolderSplit) -> None:
    """Their memory must not be another batch's before the device has come to read them."""
    made, split = on_gpu(kind, folder, True, size=3)
    read = []
    for inputs in made.epoch(3):
        torch.cuda._sleep(50_000_000)  # cycles: 25 milliseconds and more
        read.append(made.batch(*inputs))
        del inputs
    for ours, theirs in zip(read, as_trained(split, 3, True, size=3), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=gpu) for kind in KINDS])
def test_a_graph_of_a_batch_is_replayed_with_other_inputs(kind: str, folder: splits.FolderSplit) -> None:
    made, split = on_gpu(kind, folder, True)
    graph, own, held = torch.cuda.CUDAGraph(), (), ()
    for step, (inputs, expected) in enumerate(zip(made.epoch(3), as_trained(split, 3, True), strict=True)):
        if step == 0:
            own = tuple(x.clone() for x in inputs)
            made.batch(*own)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                held = made.batch(*own)
        elif inputs[0].shape != own[0].shape:
            break
        for x, given in zip(own, inputs, strict=True):
            x.copy_(given)
        graph.replay()
        assert all(torch.equal(a.cpu(), b) for a, b in zip(held, expected, strict=True))
    assert step == 2
