"""A run that was interrupted goes on where it was, and its directory is no other run's."""

import threading

import pytest
import torch
from torch import nn

import lpk
from lpk.pruning.resuming import CHECKPOINT
from lpk.tickets import files
from tests.conftest import make_network, sgd
from tests.pruning.training import OPTIONS, Stop, make_trainer, stopping
from tests.same import same


@pytest.mark.parametrize("at", [0, 2, 3])
def test_users_training_goes_on_from_the_last_finished_round(images, tmp_path, at):
    train = sgd(*images)
    whole = lpk.imp(make_network(), train, **OPTIONS)
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopping(train, at), store=tmp_path, **OPTIONS)
    assert same(lpk.imp(make_network(), train, store=tmp_path, **OPTIONS), whole)
    assert same(lpk.Tickets.load(tmp_path), whole)


@pytest.mark.parametrize(
    ("epochs", "autocast"), [(0, None), (1, None), (2, None), (4, None), (6, None), (2, "bfloat16")]
)
def test_trainer_goes_on_from_the_last_finished_epoch(tmp_path, epochs, autocast):
    whole = lpk.imp(make_network(), make_trainer(autocast=autocast), **OPTIONS)
    trainer = make_trainer(autocast=autocast)
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopping(trainer, epochs), store=tmp_path, **OPTIONS)
    left = 3 + 3 * 2 - epochs
    resumed = stopping(make_trainer(autocast=autocast), left)  # so that no epoch is trained twice
    assert same(lpk.imp(make_network(9 if epochs else 0), resumed, store=tmp_path, **OPTIONS), whole)
    with pytest.raises(Stop):
        resumed(make_network(), 0, 1)  # or fewer times than needed
    assert not (tmp_path / CHECKPOINT).exists()


class WithOptimizer:
    """A Resumable whose state is its optimizer's: dicts in dicts, lists and tuples, numbers as keys."""

    def __init__(self, images, epochs=None):
        self.images, self.left = images, epochs

    def start_round(self, round):
        self.state = None

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state

    def __call__(self, model, start, stop):
        if self.left == 0:
            raise Stop
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
        if self.state is not None:
            optimizer.load_state_dict(self.state)
        nn.functional.cross_entropy(model(self.images[0]), self.images[1]).backward()
        optimizer.step()
        model.zero_grad()
        self.state = optimizer.state_dict()
        self.left = None if self.left is None else self.left - 1


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_state_of_an_optimizer_is_stored(images, tmp_path, epochs):
    whole = lpk.imp(make_network(), WithOptimizer(images), **OPTIONS)
    with pytest.raises(Stop):
        lpk.imp(make_network(), WithOptimizer(images, epochs), store=tmp_path, **OPTIONS)
    resumed = WithOptimizer(images, 3 + 3 * 2 - epochs)
    assert same(lpk.imp(make_network(9), resumed, store=tmp_path, **OPTIONS), whole)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (make_network, "a function"),
        (torch.ones(2, dtype=torch.complex128), r"a tensor of torch\.complex128, which can't be stored"),
        (torch.eye(2).to_sparse(), r"a tensor of torch\.float32 and the layout torch\.sparse_coo"),
    ],
)
def test_a_state_that_cannot_be_stored_is_named_before_training(images, tmp_path, value, message):
    class Bad(WithOptimizer):
        def state_dict(self):
            return {"schedule": [{"at": value}]}

    bad = Bad(images, epochs=0)
    with pytest.raises(TypeError, match=rf"train\.state_dict\(\)\['schedule'\]\[0\]\['at'\] is {message}"):
        lpk.imp(make_network(), bad, store=tmp_path, **OPTIONS)
    with pytest.raises(Stop):
        lpk.imp(make_network(), bad, **OPTIONS)


def test_a_train_that_has_no_state_before_its_first_epoch(images, tmp_path):
    class Late(WithOptimizer):
        def start_round(self, round):
            super().start_round(round)
            self.ready = False

        def state_dict(self):
            if not self.ready:
                raise AttributeError("ready")
            return super().state_dict()

        def __call__(self, model, start, stop):
            super().__call__(model, start, stop)
            self.ready = True

    whole = lpk.imp(make_network(), WithOptimizer(images), **OPTIONS)
    assert same(lpk.imp(make_network(), Late(images), store=tmp_path, **OPTIONS), whole)


def test_a_network_that_cannot_be_stored_is_named_before_training(tmp_path):
    def train(model, start, stop):
        raise Stop

    network = make_network()
    network.register_buffer("phases", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(TypeError, match=r"'phases' is a tensor of torch\.complex128, which can't be stored"):
        lpk.imp(network, train, store=tmp_path, **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    with pytest.raises(Stop):
        lpk.imp(network, train, **OPTIONS)


def test_finished_run_is_not_trained_again(images, tmp_path):
    first = lpk.imp(make_network(), sgd(*images), store=tmp_path, **OPTIONS)

    def refuse(model, start, stop):
        raise AssertionError("trained again")

    network = make_network(9)
    assert same(lpk.imp(network, refuse, store=tmp_path, **OPTIONS), first)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first[-1].state_dict[name]), f"{name} is not the last ticket's"


def test_store_of_another_run_is_refused_and_kept(images, tmp_path):
    first = lpk.imp(make_network(), sgd(*images), store=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"fraction=0\.2, not 0\.5"):
        lpk.imp(make_network(), sgd(*images), store=tmp_path, fraction=0.5, **OPTIONS)
    with pytest.raises(ValueError, match="another network"):
        lpk.imp(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), sgd(*images), store=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"another `prunable`: '3\.weight' is pruned there"):
        lpk.imp(make_network(), sgd(*images), store=tmp_path, prunable=["0.weight"], **OPTIONS)
    with pytest.raises(ValueError, match=r"another `prunable`: '8\.weight' is not pruned there"):
        lpk.imp(make_network(), sgd(*images), store=tmp_path, prunable=lambda n, p: p.dim() > 1, **OPTIONS)
    assert same(lpk.Tickets.load(tmp_path), first)


@pytest.mark.parametrize("kind", ["function", "trainer"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_more_rounds_are_as_if_asked_for_at_once(images, tmp_path, kind, interrupted):
    def make(at=None):
        return stopping(sgd(*images) if kind == "function" else make_trainer(), at)

    whole = lpk.imp(make_network(), make(), **OPTIONS)
    assert same(lpk.imp(make_network(), make(), **{**OPTIONS, "rounds": 0, "store": tmp_path}), whole[:1])
    fewer = {**OPTIONS, "rounds": 2, "store": tmp_path}
    if interrupted:
        with pytest.raises(Stop):
            lpk.imp(make_network(1), make(at=1 if kind == "function" else 3), **fewer)
    else:
        assert same(lpk.imp(make_network(1), make(), **fewer), whole[:3])
    assert same(lpk.imp(make_network(2), make(), store=tmp_path, **OPTIONS), whole)
    with pytest.raises(ValueError, match="rounds=3, not 2"):
        lpk.imp(make_network(), make(), **fewer)


@pytest.mark.filterwarnings("ignore:train changed no parameter")
def test_store_in_use_is_refused(images, tmp_path):
    inside, release = threading.Event(), threading.Event()

    def train(model, start, stop):
        inside.set()
        release.wait(10)

    worker = threading.Thread(target=lpk.imp, args=(make_network(), train), kwargs={"store": tmp_path, **OPTIONS})
    worker.start()
    inside.wait(10)
    with pytest.raises(RuntimeError, match="in use by another process"):
        lpk.imp(make_network(), train, store=tmp_path, **OPTIONS)
    release.set()
    worker.join()


def test_a_file_in_the_place_of_the_store_is_named(images, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match="run is a file; a directory is needed"):
        lpk.imp(make_network(), sgd(*images), store=tmp_path / "run", **OPTIONS)


def test_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopping(make_trainer(), 2), store=tmp_path, **OPTIONS)
    content = bytearray((tmp_path / CHECKPOINT).read_bytes())
    content[-1] ^= 1
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(files.FileDamaged, match=CHECKPOINT):
        lpk.imp(make_network(), make_trainer(), store=tmp_path, **OPTIONS)
