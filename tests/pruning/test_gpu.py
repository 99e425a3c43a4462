"""Training on a GPU: replayed steps against called ones, and exact resumption."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lpk
from lpk import models
from lpk.pruning.step import Step
from lpk.pruning.train import Trainer
from tests.conftest import make_network
from tests.pooling.test_replay import Waits
from tests.pruning.training import OPTIONS, make_trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here"),
]


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def prepared(backend, **recipe):
    torch.manual_seed(7)
    trainer = make_trainer(batch_size=28, backend=backend, **recipe)
    trainer.train, trainer.augment = replace(trainer.train, augmentation="crop-flip"), True
    return trainer


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("make", [make_network, lambda: nn.Sequential(nn.Dropout(0.3), make_network())])
def test_replayed_steps_are_called_ones(deterministic, make, autocast):
    networks = []
    for backend in ("torch", "graph"):
        network = make().cuda().to(memory_format=torch.channels_last)
        trainer = prepared(backend, autocast=autocast, warmup=1)
        for epoch in range(3):
            trainer(network, epoch, epoch + 1)
        networks.append(network)
    assert trainer.graph_problem is None and same(*networks)


class Stopped(Trainer):
    """Is interrupted after some epochs."""

    left = 5

    def __call__(self, model, start, stop):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        super().__call__(model, start, stop)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_a_stopped_run_goes_on_exactly(deterministic, tmp_path, autocast):
    def run(store, kind=Trainer):
        trainer = prepared("graph", autocast=autocast)
        trainer.__class__ = kind
        return lpk.imp(make_network().cuda(), trainer, store=tmp_path / store, **OPTIONS)

    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stopped)
    for whole, resumed in zip(run("whole"), run("stopped"), strict=True):
        assert torch.equal(whole.flat.weights, resumed.flat.weights) and torch.equal(whole.mask, resumed.mask)
        assert not whole.flat.weights[~whole.mask].any()


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "small-resnet", "mlp"])
def test_lpk_s_networks_are_replayed(name, autocast):
    network = models.build(name, classes=3, shape=(1, 32, 32)).cuda().to(memory_format=torch.channels_last)
    trainer = prepared("graph", autocast=autocast, lr=0.01)
    images = nn.functional.interpolate(trainer.train.images, size=(32, 32))
    trainer.train = replace(trainer.train, images=images)
    trainer(network, 0, 2)
    assert trainer.graph_problem is None


def test_a_network_that_waits_is_called():
    trainer = prepared(None)
    trainer(Waits().cuda(), 0, 2)
    assert trainer.graph_problem
    with pytest.raises(ValueError, match="backend is 'graph', which is not possible here"):
        prepared("graph")(Waits().cuda(), 0, 1)
    after = prepared("graph")  # what failed leaves nothing behind
    after(make_network().cuda(), 0, 1)
    assert after.graph_problem is None


def test_a_replayed_step_is_a_few_launches():
    """Its own kernels are in the graph; beside it the inputs and the learning rate are written."""
    network, trainer = make_network().cuda().train(), prepared("graph")
    trainer(network, 0, 2)
    step = trainer._step
    assert isinstance(step, Step)
    network.train()
    few = [tuple(x.clone() for x in inputs) for inputs in list(trainer._feed.epoch(1))[:2]]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        assert step.fits(network, step.batch, step.recipe, step.backend)
        for inputs in few:
            step(0.1, *inputs)
    launches = sum(event.count for event in profiled.key_averages() if event.key.startswith("aten::"))
    assert launches <= 2 * (1 + len(few[0]))


def test_validation_between_replayed_steps_changes_no_bit(deterministic):
    networks = []
    for validated in (False, True):
        network = nn.Sequential(nn.Dropout(0.3), make_network()).cuda().to(memory_format=torch.channels_last)
        trainer = prepared("graph")
        trainer.validation = trainer.train if validated else None
        trainer(network, 0, 2)
        returned = trainer(network, 2, 3)
        networks.append(network)
    assert trainer.graph_problem is None and same(*networks)
    images, labels = (x.cuda() for x in trainer.train.tensors())
    correct = (network(images).argmax(1) == labels).sum().item()
    assert returned["validation accuracy"] == pytest.approx(correct / len(labels), abs=1 / len(labels))
