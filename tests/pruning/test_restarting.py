"""What a round starts from: restart="learning-rate" rewinds the schedule and keeps the weights."""

import pytest
import torch

import lpk
from lpk.pruning.resuming import CHECKPOINT, REWIND
from tests.conftest import make_network, sgd
from tests.pruning.training import OPTIONS, Stop, make_trainer, stopping
from tests.same import same

KEPT = {**OPTIONS, "restart": "learning-rate"}


def test_a_round_starts_from_the_last_ones_weights(images):
    seen = []

    def train(model, start, stop):
        seen.append((start, stop, {name: x.clone() for name, x in model.state_dict().items()}))
        sgd(*images)(model, start, stop)

    tickets = lpk.imp(make_network(), train, **KEPT)
    assert [(start, stop) for start, stop, _ in seen] == [(0, 1), (1, 3), (1, 3), (1, 3), (1, 3)]
    for before, ticket, (_, _, state) in zip(tickets, tickets[1:], seen[2:], strict=False):
        for name, x in before.state_dict.items():
            assert torch.equal(state[name], x * ticket.masks[name] if name in ticket.masks else x), name
    rewound = lpk.imp(make_network(), sgd(*images), **OPTIONS)
    assert same(tickets[:1], rewound[:1]) and not torch.equal(tickets[1].flat.weights, rewound[1].flat.weights)


@pytest.mark.parametrize("rewind", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_users_training_goes_on(images, tmp_path, rewind, at):
    options, train = {**KEPT, "rewind": rewind, "store": tmp_path}, sgd(*images)
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopping(train, at), **options)
    resumed = lpk.imp(make_network(9 if at > 2 else 0), train, **options)
    assert same(resumed, lpk.imp(make_network(), sgd(*images), **{**KEPT, "rewind": rewind}))
    assert not (tmp_path / REWIND).exists(), "what no round needs was stored"


@pytest.mark.parametrize("epochs", [1, 3, 4, 5, 6])
def test_trainer_goes_on_from_the_last_finished_epoch(tmp_path, epochs):
    whole = lpk.imp(make_network(), make_trainer(), **KEPT)
    with pytest.raises(Stop):
        lpk.imp(make_network(), stopping(make_trainer(), epochs), store=tmp_path, **KEPT)
    assert same(lpk.imp(make_network(9), make_trainer(), store=tmp_path, **KEPT), whole)
    assert not (tmp_path / CHECKPOINT).exists()


def test_more_rounds_are_as_if_asked_for_at_once(tmp_path):
    lpk.imp(make_network(), make_trainer(), **{**KEPT, "rounds": 1}, store=tmp_path)
    tickets = lpk.imp(make_network(9), make_trainer(), **KEPT, store=tmp_path)
    assert same(tickets, lpk.imp(make_network(), make_trainer(), **KEPT))
