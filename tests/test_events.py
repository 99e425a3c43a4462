"""The hooks of lpk.imp, lpk.Trainer and lpk.pool, and what the library says through logging."""

import dataclasses
import itertools
import logging
import math

import pytest
import torch
from torch import nn

import lpk
from lpk.data.splits import MemorySplit
from lpk.pruning.recipe import stream
from lpk.pruning.train import Trainer
from tests.conftest import make_images, make_network, sgd
from tests.pooling.pools import CHOICES, same_network
from tests.pruning.training import OPTIONS, make_trainer
from tests.same import same


class Stop(Exception):
    pass


@pytest.fixture
def images():
    return make_images(96, seed=1)


def watched(*, draws=False, **recipe) -> tuple[Trainer, list[lpk.EpochEvent]]:
    """A trainer that evaluates on its training samples, and what its hook got."""
    trainer, events = make_trainer(**recipe), []
    split = Drawing(trainer.train) if draws else trainer.train
    return Trainer(trainer.train, trainer.recipe, seed=3, validation=split, on_epoch=events.append), events


class Drawing:
    """A split whose loader draws from PyTorch's own stream, as a user's may."""

    def __init__(self, split: MemorySplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def loader(self, batch_size, **options):
        torch.rand(3)
        return self.split.loader(batch_size, **options)


class Dropping(nn.Module):
    """Drops half of its features in training, drawn from PyTorch's stream."""

    def __init__(self):
        super().__init__()
        self.network = make_network()

    def forward(self, x):
        return nn.functional.dropout(self.network(x), training=self.training)


# --- lpk.imp ----------------------------------------------------------------------------------------------------------


def test_each_round_is_told_when_its_ticket_is_stored(images, tmp_path):
    told, stored = [], []

    def on_round(event):
        told.append(event)
        stored.append(len(lpk.Tickets.load(tmp_path)))

    network = make_network()
    tickets = lpk.imp(network, sgd(*images), store=tmp_path, on_round=on_round, **OPTIONS)
    assert stored == [1, 2, 3, 4]
    for event, ticket in zip(told, tickets, strict=True):
        assert event.ticket is ticket and (event.round, event.rounds) == (ticket.round, 3)
        assert (event.density, event.keep, event.metrics) == (ticket.density, ticket.keep, {}) and event.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        told[0].round = 5
    assert same(lpk.imp(make_network(), sgd(*images), **OPTIONS), tickets), "the hook changed the tickets"
    lpk.imp(network, sgd(*images), store=tmp_path, on_round=pytest.fail, **OPTIONS)  # no round is left


def test_the_model_is_what_the_event_says(images):
    network, differences = make_network(), []

    def on_round(event):
        state = network.state_dict()
        differences.extend(name for name, x in event.ticket.state_dict.items() if not torch.equal(x, state[name]))

    lpk.imp(network, sgd(*images), on_round=on_round, **OPTIONS)
    assert not differences


@pytest.mark.parametrize("make", [lambda images: sgd(*images), lambda images: make_trainer()])
def test_a_hook_that_raises_ends_the_run_and_keeps_what_is_stored(images, tmp_path, make):
    def on_round(event):
        if event.round == 1:
            raise Stop

    with pytest.raises(Stop):
        lpk.imp(make_network(), make(images), store=tmp_path, on_round=on_round, **OPTIONS)
    assert len(lpk.Tickets.load(tmp_path)) == 2
    told = []
    resumed = lpk.imp(make_network(), make(images), store=tmp_path, on_round=told.append, **OPTIONS)
    assert [event.round for event in told] == [2, 3]
    assert same(resumed, lpk.imp(make_network(), make(images), **OPTIONS))


def test_numbers_that_train_returns_are_told_and_shown(images, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")

    def train(model, start, stop):
        sgd(*images)(model, start, stop)
        return {"loss": 0.5, "steps": 3 * stop, "curve": [1, 2], "tensor": torch.ones(()), 7: 1.0}

    told = []
    lpk.imp(make_network(), train, on_round=told.append, **{**OPTIONS, "progress": True})
    assert [dict(event.metrics) for event in told] == [{"loss": 0.5, "steps": 9.0}] * 4
    shown = capsys.readouterr().err
    assert "; epoch 3: loss 0.5, steps 9" in " ".join(shown.split()) and "curve" not in shown
    assert all(len(line) <= 50 for line in shown.splitlines())


# --- lpk.Trainer ------------------------------------------------------------------------------------------------------


def test_each_epoch_is_told():
    trainer, events = watched()
    network, told = make_network(), []
    tickets = lpk.imp(network, trainer, on_round=told.append, **{**OPTIONS, "rounds": 1})
    assert [(e.round, e.epoch) for e in events] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert [e.lr for e in events] == pytest.approx([0.05, 0.05, 0.005, 0.05, 0.005])
    assert all(e.seconds > 0 and math.isfinite(e.loss) for e in events)
    for event, last, ticket in zip(told, (events[2], events[4]), tickets, strict=True):
        assert event.metrics == {"loss": last.loss, "validation accuracy": last.accuracy}
        network.load_state_dict(ticket.state_dict)
        inputs, labels = trainer.train.tensors()
        assert last.accuracy == float((network.eval()(inputs).argmax(1) == labels).double().mean())


def test_loss_is_the_mean_of_the_steps():
    trainer, network = make_trainer(lr=0.0, batch_size=32), make_network().train()
    batches = trainer.train.loader(32, seed=stream(3, "samples", 0, 1))
    losses = [nn.functional.cross_entropy(network(x), y).item() for x, y in batches]
    assert trainer(network, 0, 2) == {"loss": pytest.approx(sum(losses) / 3)} and not network.training
    assert trainer(network, 2, 2) == {}


@pytest.mark.parametrize("draws", [False, True])
def test_validation_changes_no_bit_of_training(draws):
    trained = []
    for trainer in (make_trainer(), watched(draws=draws)[0]):
        torch.manual_seed(0)
        model = Dropping()
        trainer(model, 0, 3)
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_hook_that_raises_ends_training(tmp_path):
    trainer = make_trainer()

    def on_epoch(event):
        if (event.round, event.epoch) == (1, 3):
            raise Stop

    stopped = Trainer(trainer.train, trainer.recipe, seed=3, on_epoch=on_epoch)
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopped, store=tmp_path, **OPTIONS)
    assert same(
        lpk.imp(make_network(), make_trainer(), store=tmp_path, **OPTIONS),
        lpk.imp(make_network(), make_trainer(), **OPTIONS),
    )


def test_validation_without_samples_is_refused():
    trainer = make_trainer()
    with pytest.raises(ValueError, match="validation has no samples"):
        Trainer(trainer.train, trainer.recipe, validation=trainer.train.take(0))


# --- lpk.pool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["interpolation", "swa"])
def test_each_step_is_told(tickets, network, validation, calibration, method):
    options = {"model": network, "validation": validation, "calibration": calibration, "method": method, **CHOICES}
    told = []
    pools = lpk.pool(tickets, on_step=told.append, **options)
    for pooled in pools:
        events = [event for event in told if event.target == pooled.round]
        assert [(e.candidate, e.coefficient, e.accuracy, e.accepted) for e in events] == list(pooled.steps)
        assert [(e.step, e.steps) for e in events] == [(i, 4) for i in (1, 2, 3, 4)]
        assert all(0 < a.seconds <= b.seconds for a, b in itertools.pairwise(events))
        best = pooled.baseline_accuracy
        for event in events:
            best = event.accuracy if event.accepted and event.accuracy is not None else best
            assert event.best == best
    assert len(told) == 20 and all(map(same_network, pools, lpk.pool(tickets, **options)))


def test_a_hook_that_raises_ends_the_search(tickets, network, validation, calibration):
    def on_step(event):
        raise Stop

    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(Stop):
        lpk.pool(tickets, 2, model=network, validation=validation, calibration=calibration, on_step=on_step, **CHOICES)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


# --- logging ----------------------------------------------------------------------------------------------------------


def test_what_happens_is_logged(tickets, network, validation, calibration, tmp_path, caplog, capsys):
    options = {**OPTIONS, "rounds": 1}
    with caplog.at_level(logging.INFO, "lpk"):
        lpk.imp(make_network(), make_trainer(), store=tmp_path, **options)
        pooled = lpk.pool(tickets, 1, model=network, validation=validation, calibration=calibration, **CHOICES)
    assert all(record.name.startswith("lpk.") for record in caplog.records)
    dense, first, found = (record.getMessage() for record in caplog.records)
    assert dense.startswith("round 0: 100.0% of the weights, 2 layers") and "486 weights remain" in dense
    assert first.startswith("round 1: 80.0%") and "loss" in first and str(pooled) in found
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "lpk"):
        make_trainer()(make_network(), 0, 1)
        lpk.pool(tickets, 1, model=network, validation=validation, calibration=calibration, **CHOICES)
    kinds = [record.getMessage().partition("(")[0] for record in caplog.records]
    assert kinds == ["EpochEvent", *["StepEvent"] * 4, "Pooled"]
    assert capsys.readouterr() == ("", ""), "the library printed"


def test_where_a_round_goes_on_is_logged(tmp_path, caplog):
    def on_epoch(event):
        if event.epoch == 3:
            raise Stop

    trainer = make_trainer()
    with pytest.raises(Stop):
        stopped = Trainer(trainer.train, trainer.recipe, seed=3, on_epoch=on_epoch)
        lpk.imp(make_network(), stopped, store=tmp_path, **OPTIONS)
    with caplog.at_level(logging.INFO, "lpk"):
        lpk.imp(make_network(), trainer, store=tmp_path, **OPTIONS)
    assert caplog.records[0].getMessage() == "round 0 goes on from epoch 2"
