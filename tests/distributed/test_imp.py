"""lpk.imp in several processes, which train one network together."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lpk
from tests.conftest import make_images, make_network
from tests.distributed.processes import in_ranks

OPTIONS = {"epochs": 2, "rewind": 1, "fraction": 0.5, "seed": 0, "progress": False}


def trains(rank, count, seen):
    """A user's own loop: each rank takes its part of the batches."""

    def train(model, start, stop):
        images, labels = make_images(96, seed=1)
        network = model.module
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        pruned = network[3].weight == 0
        model.train()
        for _ in range(start, stop):
            for x, y in zip(images.split(32), labels.split(32), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rank::count]), y[rank::count]).backward()
                optimizer.step()
                moved = optimizer.state[network[3].weight]["momentum_buffer"]
                seen.append(
                    (int(pruned.sum()), float(network[3].weight[pruned].abs().sum() + moved[pruned].abs().sum()))
                )

    return train


def run(rank, count, store, rounds):
    torch.manual_seed(rank)
    seen = []
    model = DistributedDataParallel(make_network(seed=rank)) if count > 1 else nn.DataParallel(make_network())
    tickets = lpk.imp(model, trains(rank, count, seen), store=store, rounds=rounds, **OPTIONS)
    return [t.state_dict for t in tickets], tickets.layout.n, seen, model.module.state_dict()


def same(states, others):
    pairs = list(zip(states, others, strict=True))
    return all(torch.equal(x, b[name]) for a, b in pairs for name, x in a.items())


def test_every_rank_holds_the_same_and_another_number_of_ranks_goes_on(tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "three").mkdir()
    one, other = in_ranks(2, run, tmp_path / "two", 2, tmp_path / "store", 1)
    assert same(one[0], other[0]) and same([one[3]], [other[3]]) and same([one[3]], one[0][-1:])
    assert same(one[0], [t.state_dict for t in lpk.Tickets.load(tmp_path / "store")])
    assert not torch.equal(one[0][0]["1.running_mean"], torch.zeros(6))
    assert {moved for _, moved in one[2] + other[2]} == {0.0}
    assert one[2][-1][0] > 100

    more = in_ranks(3, run, tmp_path / "three", 3, tmp_path / "store", 2)
    for states, *_ in more:
        assert len(states) == 3 and same(states[:2], one[0]) and same(states, more[0][0])


def test_ranks_that_do_not_train_together(tmp_path):
    returned = in_ranks(2, _apart, tmp_path)
    for text in returned:
        assert text.startswith(
            "ValueError: '0.weight' of rank 1 is not that of rank 0: train the network in torch.nn.par"
        )


def _apart(rank):
    images, labels = make_images(64, seed=rank)

    def train(model, start, stop):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    lpk.imp(make_network(), train, rounds=1, **OPTIONS)


@pytest.mark.parametrize("kind", ["settings", "round"])
def test_what_one_rank_raises_the_others_say(kind, tmp_path):
    one, other = in_ranks(2, _raises, tmp_path, kind)
    if kind == "settings":
        assert one == other and one.startswith(
            "ValueError: seed of rank 1 is not that of rank 0: all processes need the"
        )
    else:
        assert (one, other) == ("RankFailed: rank 1 failed: OSError: no space", "OSError: no space")


def _raises(rank, kind):
    def on_round(event):
        if rank == 1:
            raise OSError("no space")

    seed = rank if kind == "settings" else 0
    options = {**OPTIONS, "seed": seed, "on_round": on_round if kind == "round" else None}
    model = DistributedDataParallel(make_network())
    lpk.imp(model, trains(rank, 2, []), rounds=1, **options)
