"""Checkpoints of a network on a GPU are written in the background: the CPU's are taken for such."""

import threading

import pytest
import torch

import lpk
from lpk.pruning import resuming
from lpk.pruning.resuming import CHECKPOINT
from lpk.pruning.train import Trainer
from lpk.tickets import files
from tests.conftest import make_network
from tests.pruning.training import OPTIONS, Stop, make_trainer
from tests.same import same


class Watched(Trainer):
    """Calls `before(epoch)` before each epoch."""

    def __call__(self, model, start, stop):
        self.before(start)
        super().__call__(model, start, stop)


def watched(before):
    trainer = make_trainer()
    trainer.__class__ = Watched
    trainer.before = before
    return trainer


@pytest.fixture
def on_a_device(monkeypatch):
    """Yields the names of the files that were written, with the thread."""
    monkeypatch.setattr(resuming, "_on_a_device", lambda tensors: True)
    written, save = [], files.save_tensors

    def saved(path, *arguments):
        written.append((path.name, threading.current_thread()))
        return save(path, *arguments)

    monkeypatch.setattr(files, "save_tensors", saved)
    return written


def test_an_epoch_is_trained_while_the_last_one_is_written(on_a_device, monkeypatch, tmp_path):
    save, trained, waited = files.save_tensors, threading.Event(), []

    def slow(path, *arguments):
        if path.name == CHECKPOINT:
            waited.append(trained.wait(20))  # for the epoch after it
            trained.clear()
        return save(path, *arguments)

    monkeypatch.setattr(files, "save_tensors", slow)
    tickets = lpk.imp(make_network(), watched(lambda epoch: trained.set()), store=tmp_path, **OPTIONS)
    assert len(waited) == 2 + 1 * 3 and all(waited)
    assert {thread is threading.main_thread() for name, thread in on_a_device if name == CHECKPOINT} == {False}
    assert same(tickets, lpk.imp(make_network(), make_trainer(), **OPTIONS)) and same(
        lpk.Tickets.load(tmp_path), tickets
    )
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_an_interrupted_run_has_stored_its_last_epoch(on_a_device, monkeypatch, tmp_path, epochs):
    seen, save = [], files.save_tensors

    def slow(path, *arguments):
        threading.Event().wait(0.2)
        return save(path, *arguments)

    monkeypatch.setattr(files, "save_tensors", slow)

    def stop(epoch):
        if len(seen) == epochs:
            raise Stop
        seen.append(epoch)

    with pytest.raises(Stop):
        lpk.imp(make_network(), watched(stop), store=tmp_path, **OPTIONS)
    assert on_a_device[-1][0] == CHECKPOINT
    monkeypatch.setattr(files, "save_tensors", save)
    tickets = lpk.imp(make_network(9), watched(seen.append), store=tmp_path, **OPTIONS)
    assert len(seen) == 3 + 3 * 2 and same(tickets, lpk.imp(make_network(), make_trainer(), **OPTIONS))


def test_what_is_stored_is_what_the_epoch_left(on_a_device, monkeypatch, tmp_path):
    """Not what the next one makes of it meanwhile."""
    network, left, stored = make_network(), [], []
    save = files.save_tensors

    def late(path, tensors, metadata):
        if path.name == CHECKPOINT:
            threading.Event().wait(0.1)
            stored.append(tensors["model.0.weight"].clone())
        return save(path, tensors, metadata)

    monkeypatch.setattr(files, "save_tensors", late)

    def before(epoch):
        left.append(network[0].weight.detach().clone())

    lpk.imp(network, watched(before), store=tmp_path, **{**OPTIONS, "rounds": 0})
    assert len(stored) == 2 and all(map(torch.equal, stored, left[1:]))


def test_what_can_t_be_written_is_raised(on_a_device, monkeypatch, tmp_path):
    save = files.save_tensors

    def full(path, *arguments):
        if path.name == CHECKPOINT:
            raise OSError(28, "No space left on device", str(path))
        return save(path, *arguments)

    monkeypatch.setattr(files, "save_tensors", full)
    seen = []
    with pytest.raises(OSError, match="No space left"):
        lpk.imp(make_network(), watched(seen.append), store=tmp_path, **OPTIONS)
    assert len(seen) == 2  # the epoch after it was on its way
