"""lpk.Trainer in several processes, each of which takes its part of every batch."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lpk
from lpk.data import feed
from lpk.data.splits import MemorySplit
from lpk.distributed import Part
from lpk.networks.synchronised import synchronised
from lpk.pruning.recipe import Recipe
from tests.conftest import make_images, make_network
from tests.distributed.processes import in_ranks
from tests.pruning.training import make_trainer

SAMPLES = 65  # two batches of 32, and one that is too small for two ranks


@dataclass
class Doubles:
    """A split whose images are float64."""

    split: MemorySplit

    def __len__(self):
        return len(self.split)

    def loader(self, batch_size, **options):
        return [(x.double(), y) for x, y in self.split.loader(batch_size, **options)]


def train(rank, wrap):
    images, labels = make_images(SAMPLES, seed=1)
    split = MemorySplit((images * 40 + 128).clamp(0, 255).to(torch.uint8), labels, mean=(0.5,), std=(0.2,))
    trainer = lpk.Trainer(Doubles(split), Recipe(epochs=2, batch_size=32, lr=0.1, milestones=()), seed=3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    metrics = trainer(wrap(network), 0, 1)
    return [p.detach() for p in network.parameters()], metrics["loss"]


def test_two_ranks_train_what_one_process_does(tmp_path):
    alone, loss = train(0, lambda network: network)
    returned = in_ranks(2, train, tmp_path, DistributedDataParallel)
    for parameters, their_loss in returned:
        for p, q in zip(parameters, alone, strict=True):
            assert (p - q).abs().max() < 1e-12
        assert their_loss == pytest.approx(loss, rel=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(returned[0][0], returned[1][0], strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_two_gpus_train_what_one_does(tmp_path):
    one, loss = _on_gpu(0, lambda network: network)
    for parameters, their_loss in in_ranks(2, _on_gpu, tmp_path, _parallel, backend="nccl"):
        for p, q in zip(parameters, one, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-3)
        assert their_loss == pytest.approx(loss, rel=1e-3)


def _on_gpu(rank, wrap):
    images, labels = make_images(96, seed=1)
    split = MemorySplit((images * 40 + 128).clamp(0, 255).to(torch.uint8), labels, mean=(0.5,), std=(0.2,))
    trainer = lpk.Trainer(split, Recipe(epochs=2, batch_size=32, lr=0.05, milestones=()), seed=3)
    network = make_network().cuda()
    metrics = trainer(wrap(network), 0, 1)
    return [p.detach().cpu() for p in network.parameters()], metrics["loss"]


def _parallel(network):
    return DistributedDataParallel(synchronised(network))


def test_an_interrupted_run_goes_on(tmp_path):
    (tmp_path / "ranks").mkdir()
    for whole, resumed in in_ranks(2, _interrupted, tmp_path / "ranks", tmp_path):
        for a, b in zip(whole, resumed, strict=True):
            assert all(torch.equal(x, b[name]) for name, x in a.items())


def _interrupted(rank, directory):
    def run(name, stop=None):
        def on_epoch(event):
            if (event.round, event.epoch) == stop:
                raise KeyError("enough")

        trainer = make_trainer()
        trainer.on_epoch = on_epoch
        model = DistributedDataParallel(make_network())
        options = {"epochs": 3, "rounds": 1, "rewind": 1, "seed": 5, "progress": False}
        return [t.state_dict for t in lpk.imp(model, trainer, store=directory / name, **options)]

    try:
        run("stopped", (1, 3))
    except KeyError:
        return run("whole"), run("stopped")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 31, 32])
def test_parts_make_a_batch(count, size):
    batch = torch.arange(size)
    parts = [Part(rank, count) for rank in range(count)]
    counted = [part.of([batch])[0] for part in parts if part.weight(size) > 0]
    assert torch.equal(torch.cat(counted), batch)
    assert all(len(part.of([batch])[0]) >= 1 for part in parts)
    means = [float(part.of([batch])[0].double().mean()) * part.weight(size) for part in parts]
    assert sum(means) / count == pytest.approx(float(batch.double().mean()))


@pytest.mark.parametrize("make", [feed.Resident, feed.stream_memory, feed.Moved])
def test_feeds_give_a_rank_its_part(make):
    images, labels = make_images(70, seed=1)
    split = MemorySplit((images * 40 + 128).clamp(0, 255).to(torch.uint8), labels, (0.5,), (0.2,), "crop-flip")
    options = {"workers": 0} if make is feed.stream_memory else {}

    def batches(part):
        made = make(split, torch.device("cpu"), 32, augment=True, part=part, **options)
        return [made.batch(*inputs) for inputs in made.epoch(7)]

    halves = zip(batches(Part(0, 2)), batches(Part(1, 2)), strict=True)
    for (x, y), (one, other) in zip(batches(Part()), halves, strict=True):
        assert torch.equal(torch.cat((one[0], other[0])), x) and torch.equal(torch.cat((one[1], other[1])), y)
