"""lpk.pool of all targets, shared out among processes."""

import time

import pytest
import torch

import lpk
from lpk.distributed import alone
from tests.conftest import make_images, make_network, random_tickets
from tests.distributed.processes import in_ranks
from tests.pooling.pools import CHOICES


def make_pools(rank, directory, slow=None, **options):
    """Pools of all targets, and which of them this rank searched; rank `slow` takes its time."""
    searched = set()

    def on_step(event):
        searched.add(event.target)
        time.sleep(0.2 if rank == slow else 0)

    pools = lpk.pool(
        lpk.Tickets.load(directory),
        model=make_network(),
        calibration=make_images(160, seed=3),
        on_step=on_step,
        **{**CHOICES, "validation": make_images(203, seed=2), **options},
    )
    return [(p.state_dict, p.mask, p.steps, p.forward_samples, p.accuracy, p.settings) for p in pools], searched


def check_same(pools, others):
    assert len(pools) == len(others)
    for pool, other in zip(pools, others, strict=True):
        assert all(torch.equal(x, other[0][name]) for name, x in pool[0].items())
        assert torch.equal(pool[1], other[1])
        assert pool[2:] == other[2:]


@pytest.fixture
def directory(tickets, tmp_path):
    tickets.save(tmp_path / "tickets")
    return tmp_path / "tickets"


@pytest.mark.parametrize(("count", "search"), [(2, "bounded"), (3, "racing")])
def test_every_rank_returns_what_one_process_does(count, search, directory, tmp_path):
    torch.set_num_threads(1)  # as in the processes: settings say how many
    expected, _ = make_pools(0, directory, search=search)
    returned = in_ranks(count, _shared, tmp_path, directory, search)
    for pools, _ in returned:
        check_same(pools, expected)
    searched = [targets for _, targets in returned]
    assert sorted(t for targets in searched for t in targets) == [0, 1, 2, 3, 4]
    assert len(searched[1]) < len(searched[0])  # rank 1 is slow


def _shared(rank, directory, search):
    return make_pools(rank, directory, slow=1, search=search)


def test_a_rank_that_raises_ends_the_others(directory, tmp_path):
    returned = in_ranks(2, _one_raises, tmp_path, directory)
    assert returned[1] == "ValueError: evaluate is broken here"
    assert returned[0] == "RankFailed: rank 1 failed: ValueError: evaluate is broken here"


def _one_raises(rank, directory):
    def evaluate(model):
        if rank == 1:
            raise ValueError("evaluate is broken here")
        time.sleep(0.02)
        return float(next(model.parameters()).sum())

    return make_pools(rank, directory, validation=None, evaluate=evaluate)


def test_other_tickets_on_another_rank(tmp_path):
    returned = in_ranks(2, _other_tickets, tmp_path)
    assert all(
        text.startswith("ValueError: the ticket of round 0 of rank 1 is not that of rank 0") for text in returned
    )


def _other_tickets(rank):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 2))
    return lpk.pool(random_tickets(rank), model=model, evaluate=lambda model: 0.0, progress=False)


def test_what_is_called_alone_and_one_target_are_not_shared(directory, tmp_path):
    assert in_ranks(2, _alone, tmp_path, directory) == [{0, 1, 2, 3, 4}, 2]


def _alone(rank, directory):
    """Rank 0 pools all targets alone, rank 1 a single one."""
    if rank == 0:
        with alone():
            return make_pools(rank, directory)[1]
    return lpk.pool(
        lpk.Tickets.load(directory), 2, model=make_network(), validation=make_images(203, seed=2), **CHOICES
    ).round
