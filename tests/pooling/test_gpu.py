"""The search on a GPU: recorded graphs against calls, and what only a GPU can get wrong."""

import pytest
import torch
from torch import nn

from lpk import models
from lpk.networks.flat import Layout
from lpk.pooling import uploads
from lpk.pooling.convolutions import Fused
from lpk.pooling.eager import Eager
from lpk.pooling.pool import pool
from lpk.pooling.uploads import Uploads
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests.networks.random_statistics import with_random_statistics
from tests.pooling.evaluators import make_evaluator
from tests.pooling.pools import CHOICES, same_network
from tests.pooling.test_replay import Counts, Draws, Waits, alike

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here"),
]


def both(tickets, network, target=None, **options):
    return [
        pool(tickets, target, model=network, device="cuda", backend=backend, **{**CHOICES, **options})
        for backend in ("torch", "graph")
    ]


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize(
    ("search", "criterion"),
    [("exhaustive", "accuracy"), ("bounded", "accuracy"), ("racing", "accuracy"), ("bounded", "loss")],
)
def test_replayed_pools_are_those_of_calls(tickets, network, validation, calibration, search, criterion, autocast):
    options = {"validation": validation, "calibration": calibration, "search": search, "criterion": criterion}
    for called, replayed in zip(*both(tickets, network, autocast=autocast, **options), strict=True):
        alike(called, replayed)
        assert (called.settings["backend"], replayed.settings["backend"]) == ("torch", "graph")
        assert replayed.settings["tf32"] == torch.backends.cudnn.allow_tf32


def make_tickets(network, count):
    """Tickets of one network around one another."""
    layout, tickets = Layout.of_model(network), []
    for i in range(count):
        state = {name: x.clone() for name, x in network.state_dict().items()}
        generator = torch.Generator().manual_seed(i)
        for name, x in state.items():
            if x.dim() > 1:
                state[name] = x + 0.2 * x.std() * torch.randn(x.shape, generator=generator)
        flat = layout.flatten(state)
        keep = int(layout.n * 0.8**i)
        mask = torch.zeros(layout.n, dtype=torch.bool)
        mask[torch.randperm(layout.n, generator=generator)[:keep]] = True
        tickets.append(Ticket(i, layout, flat._replace(weights=flat.weights * mask), mask))
    return Tickets(tickets)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_networks_by_name(name, autocast):
    torch.manual_seed(0)
    network = with_random_statistics(models.build(name, classes=10, shape=(3, 32, 32)))
    samples = torch.randn(700, 3, 32, 32), torch.randint(0, 10, (700,))
    options = {"validation": samples, "calibration": samples[0], "autocast": autocast, "batch_size": None}
    called, replayed = both(make_tickets(network, 3), network, target=1, **options)
    alike(called, replayed)
    assert (called.settings["batch_size"], called.settings["calibration_batch_size"]) == (256, 128)


@pytest.mark.parametrize("kind", [Waits, Counts, Draws])
def test_what_cannot_be_recorded_is_called(validation, calibration, kind):
    options = {"validation": validation, "calibration": calibration, "batch_size": 20, "device": torch.device("cuda")}
    made = make_evaluator(kind(), **options)
    made.calibrate()
    made.score()
    assert made.backend == "torch" and made.graph_problem
    made.calibrate()  # a recording that was broken off leaves nothing behind
    assert made.score() is not None and torch.rand(3, device="cuda").isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_fused_convolutions_read_no_memory_that_nobody_wrote(autocast):
    network = with_random_statistics(models.build("resnet18", classes=10, shape=(3, 32, 32))).cuda()
    eager, x = Eager(network.requires_grad_(False), autocast), torch.randn(64, 3, 32, 32, device="cuda")
    expected = eager(x)
    assert sum(isinstance(module, Fused) for module in eager.folded.network.modules()) == 17
    for dtype in (torch.float32, torch.bfloat16):
        torch.cuda.empty_cache()
        poison = [torch.full((size,), torch.nan, dtype=dtype, device="cuda") for size in (1 << 28, 1 << 20, 1 << 14)]
        del poison
        assert torch.equal(eager(x), expected)


def test_uploaded_tickets_are_the_tickets(tickets, monkeypatch):
    for share in (0.5, 0.0):
        monkeypatch.setattr(uploads, "SHARE", share)
        made = Uploads(tickets, torch.device("cuda"))
        assert made.all_fit == (share > 0)
        for i, following in ((0, 1), (1, 3), (3, None), (2, 0), (0, 2)):
            flat = made.take(i, following)
            assert flat.weights.is_cuda and torch.equal(flat.weights.cpu(), tickets[i].flat.weights)
            assert torch.equal(flat.rest.cpu(), tickets[i].flat.rest)
        made.close()


def test_a_pool_is_the_same_where_tickets_do_not_fit(tickets, network, validation, calibration, monkeypatch):
    options = {"model": network, "validation": validation, "calibration": calibration, "device": "cuda", **CHOICES}
    expected = pool(tickets, **options)
    monkeypatch.setattr(uploads, "SHARE", 0.0)
    assert all(map(same_network, expected, pool(tickets, **options)))


def test_the_bound_on_a_gpu_is_exact(tickets, network, validation, calibration):
    options = {"model": network, "validation": validation, "calibration": calibration, "device": "cuda", **CHOICES}
    for exhaustive, bounded in zip(
        *(pool(tickets, search=s, **options) for s in ("exhaustive", "bounded")), strict=True
    ):
        assert same_network(exhaustive, bounded) and exhaustive.accuracy == bounded.accuracy


def test_weights_of_a_network_without_batchnorm_are_read_anew(validation):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)).cuda()
    made = make_evaluator(network, validation=validation, batch_size=20, device=torch.device("cuda"))
    scores = []
    for scale in (1.0, 1.0, -1.0, 1.0):
        made.flat.weights.mul_(scale)
        made.written()
        scores.append(made.score().value)
    assert made.backend == "graph" and scores[0] == scores[1] and scores[2] == scores[3]
