"""A training step that is recorded and replayed, emulated on a CPU: it must do what the step does when it is called."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import lpk
from lpk.networks import replay
from lpk.networks.flat import Layout
from lpk.pruning import step
from lpk.pruning.masking import kept_pruned
from lpk.pruning.step import Step
from tests.conftest import make_network
from tests.pooling.recording import Emulated
from tests.pruning.training import OPTIONS, make_trainer

MASKED = {**OPTIONS, "epochs": 3, "rounds": 2}


def like_a_gpu(monkeypatch):
    """The CPU takes the ways of a GPU, and its generator is the device's."""
    for module in (step, replay):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(step, "Recorder", Emulated)
    monkeypatch.setattr(step, "_host_generator", lambda: b"")
    monkeypatch.setattr(Emulated, "recorded", 0)


@pytest.fixture
def gpu(monkeypatch):
    like_a_gpu(monkeypatch)


def trained(network, *, backend, epochs=3, **recipe):
    """A network trained epoch by epoch, in batches of 28: 28, 28, 28 and 12 samples."""
    torch.manual_seed(7)
    trainer = make_trainer(batch_size=28, **recipe)
    trainer.train, trainer.augment, trainer.backend = replace(trainer.train, augmentation="crop-flip"), True, backend
    for epoch in range(epochs):
        trainer(network, epoch, epoch + 1)
    return network, trainer


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_replayed_steps_are_called_ones(monkeypatch, autocast):
    usual, _ = trained(make_network(), backend=None, autocast=autocast, warmup=1)
    like_a_gpu(monkeypatch)
    (called, a), (replayed, b) = (
        trained(make_network(), backend=backend, autocast=autocast, warmup=1) for backend in ("torch", "graph")
    )
    assert Emulated.recorded == 1 and (a.graph_problem, b.graph_problem) == ("it was asked for", None)
    assert same(called, replayed) and not same(called, make_network())
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    for ours, theirs in zip(
        replayed.parameters(), usual.parameters(), strict=True
    ):  # a fused update, a rate in a tensor
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 if autocast is None else 1e-2)


def test_lpk_imp_with_replayed_steps(gpu):
    """Each round's masks are recorded anew."""
    runs = []
    for backend in ("torch", "graph"):
        trainer = make_trainer()
        trainer.backend = backend
        runs.append(lpk.imp(make_network(), trainer, **MASKED))
    assert Emulated.recorded == MASKED["rounds"] + 1
    for called, replayed in zip(*runs, strict=True):
        assert torch.equal(called.flat.weights, replayed.flat.weights) and torch.equal(called.mask, replayed.mask)
        assert not replayed.flat.weights[~replayed.mask].any()


def test_an_interrupted_run_with_replayed_steps_goes_on_exactly(gpu, tmp_path):
    whole, halves = make_trainer(backend="graph"), make_trainer(backend="graph")
    one, other = make_network(), make_network()
    whole(one, 0, 3)
    halves(other, 0, 2)
    resumed = make_trainer(backend="graph")
    resumed.load_state_dict(halves.state_dict())
    resumed(other, 2, 3)
    assert same(one, other)


def test_a_new_mask_and_new_attributes_are_recorded_anew(gpu):
    network, trainer = trained(make_network(), backend="graph", epochs=1)
    trainer(network, 1, 2)
    assert Emulated.recorded == 1
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).momentum = 0.5
    trainer(network, 2, 3)
    assert Emulated.recorded == 2
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.data = parameter.clone()  # at another address
    trainer(network, 3, 4)
    assert Emulated.recorded == 3


def test_a_mask_s_step_is_not_another_s(gpu):
    network, trainer = make_network(), make_trainer(backend="graph")
    layout = Layout.of_model(network)
    for seed in range(2):
        mask = torch.rand(layout.n, generator=torch.Generator().manual_seed(seed)) < 0.5
        with kept_pruned(network, layout, mask, lambda: None):
            trainer(network, seed, seed + 1)
        assert not layout.flatten(network.state_dict()).weights[~mask].any()
    assert Emulated.recorded == 2


def test_steps_of_the_usual_size_are_recorded(gpu):
    """Epochs of 40, 40 and 16 samples."""
    trainer = make_trainer(backend="graph", batch_size=40)
    trainer(make_network(), 0, 2)
    assert [len(x) for x in trainer._step._replayed._inputs] == [40]


def test_a_loss_that_diverges_is_told(gpu):
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) in round 0, epoch 0"):
        trained(make_network(), backend="graph", lr=1e30, epochs=3)


def test_dropout_is_drawn_anew_in_each_step(gpu):
    network = nn.Sequential(nn.Dropout(0.5), make_network())
    (called, _), (replayed, trainer) = (
        trained(nn.Sequential(nn.Dropout(0.5), make_network()), backend=backend) for backend in ("torch", "graph")
    )
    assert trainer.graph_problem is None and Emulated.recorded == 1 and same(called, replayed)
    assert not same(replayed, trained(network, backend="graph", lr=0.04)[0])


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make_network()
        self.calls = 0


class Counts(Wrapped):
    def forward(self, x):
        self.calls += 1
        return self.body(x * (1 + 0.001 * self.calls))


class CountsForAll(Wrapped):
    seen = 0

    def forward(self, x):
        CountsForAll.seen += 1
        return self.body(x)


class Lists(Wrapped):
    def __init__(self):
        super().__init__()
        self.history = []

    def forward(self, x):
        self.history.append(len(x))
        return self.body(x)


class DrawsOnTheHost(Wrapped):
    def forward(self, x):
        return self.body(x if random.random() < 0.5 else -x)


class Waits(Wrapped):
    def forward(self, x):
        return self.body(x if x.sum() > -1e9 else -x)


def hooked(add):
    network = make_network()
    add(network)
    return network


PROBLEMS = {
    "counter": (Counts, "changes attributes"),
    "counter of the class": (CountsForAll, "changes attributes"),
    "list": (Lists, "changes attributes"),
    "random": (DrawsOnTheHost, "random numbers on the host"),
    "waits": (Waits, "synchronizing operation"),
    "forward hook": (lambda: hooked(lambda n: n[0].register_forward_hook(lambda m, x, y: None)), "has a hook"),
    "gradient hook": (lambda: hooked(lambda n: n[0].weight.register_hook(lambda g: None)), "has a hook"),
}


@pytest.mark.parametrize(("make", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_a_graph_cannot_hold_is_called(gpu, make, problem):
    random.seed(1)
    called, _ = trained(make(), backend="torch", epochs=2)
    random.seed(1)
    CountsForAll.seen = 0
    network, trainer = trained(make(), backend=None, epochs=2)
    assert problem in trainer.graph_problem
    assert same(called, network)
    with pytest.raises(ValueError, match=f"backend is 'graph', which is not possible here: .*{problem}"):
        trained(make(), backend="graph", epochs=1)


def test_a_replay_that_does_something_else_is_found():
    before, expected = [torch.zeros(4), torch.tensor(3)], [torch.ones(4), torch.tensor(4)]
    assert step._close(before, expected, [torch.ones(4) * 1.001, torch.tensor(4)])
    assert not step._close(before, expected, [torch.ones(4) * 1.1, torch.tensor(4)])
    assert not step._close(before, expected, [torch.ones(4), torch.tensor(5)])
    assert not step._close(before, expected, [torch.ones(4) * torch.nan, torch.tensor(4)])
    assert step._close(before, before, before)
    assert step._close(before, [torch.ones(4) * torch.nan, torch.tensor(4)], expected)  # diverged, which is told later


def test_a_cpu_has_no_graphs():
    with pytest.raises(ValueError, match="backend is 'graph', which is not possible here: cpu has no CUDA graphs"):
        make_trainer(backend="graph")(make_network(), 0, 1)
    with pytest.raises(ValueError, match="backend is 'jit'; it must be one of 'graph', 'torch', or None"):
        make_trainer(backend="jit")


def test_momentum_of_a_parameter_without_gradients_stays_empty():
    """What is stored is loaded into the parameters that it came from."""
    network = make_network()
    network[0].idle = nn.Parameter(torch.zeros(3))
    trainer, resumed = make_trainer(momentum=0.9), make_trainer(momentum=0.9)
    trainer(network, 0, 1)
    resumed.load_state_dict({name: buffer.clone() for name, buffer in trainer.state_dict().items()})
    assert len(trainer.state_dict()) == len(list(network.parameters())) - 1
    other = make_network()
    other[0].idle = nn.Parameter(torch.zeros(3))
    other.load_state_dict(network.state_dict())
    trainer(network, 1, 2)
    resumed(other, 1, 2)
    assert same(network, other)


def test_a_step_fits_its_network_alone():
    network, recipe = make_network().train(), make_trainer().recipe
    asked = print, recipe, None  # the batch is not looked at
    made = Step(network, print, recipe, {}, None)
    assert made.fits(network, *asked) and not made.fits(make_network().train(), *asked)
    for i, other in enumerate((repr, replace(recipe, weight_decay=0.5), "torch")):
        assert not made.fits(network, *asked[:i], other, *asked[i + 1 :])
    network.eval()
    assert not made.fits(network, *asked)


@pytest.mark.parametrize("change", ["train", "weight decay", "batch size", "augment"])
def test_what_a_trainer_is_given_later_counts(change):
    """As in a trainer that was made with it."""
    networks, trainers = [make_network(), make_network()], [make_trainer(), make_trainer()]
    images = replace(trainers[0].train, augmentation="crop-flip")
    for trainer in trainers:
        trainer.train = images
    recipe = trainers[0].recipe
    name, other = {
        "train": ("train", replace(images, images=images.images.flip(0))),
        "weight decay": ("recipe", replace(recipe, weight_decay=0.1)),
        "batch size": ("recipe", replace(recipe, batch_size=48)),
        "augment": ("augment", True),
    }[change]
    trainers[0](networks[0], 0, 1)
    setattr(trainers[0], name, other)
    trainers[0](networks[0], 1, 2)
    trainers[1](networks[1], 0, 1)
    renewed = make_trainer()
    renewed.train = images
    setattr(renewed, name, other)
    renewed.load_state_dict(trainers[1].state_dict())
    renewed(networks[1], 1, 2)
    assert same(*networks)
    trainers[1](networks[1], 1, 2)
    assert not same(*networks)
