"""lpk.reporting.costs and latency: what networks cost, held against files, PyTorch's own counter and clocks."""

import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lpk import sparse
from lpk.reporting import costs, latency
from lpk.tickets.tickets import Tickets


class Unsupported(nn.Module):
    """What can't be traced."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(8, 8, 3, groups=2, stride=2), nn.Flatten(), nn.Linear(72, 5))


def tickets_of(model: nn.Module) -> Tickets:
    """The dense network, and half of it."""
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    half = {name: value.clone() for name, value in dense.items()}
    for value in half.values():
        if value.dim() > 1:
            value.view(-1)[::2] = 0
    return Tickets.from_state_dicts([dense, half])


def test_bytes_are_those_of_the_file(tmp_path):
    ticket = tickets_of(convolutional())[1]
    sparse.save_sparse(tmp_path / "a", ticket.state_dict, ticket.masks)
    assert costs.sparse_bytes(ticket.state_dict, ticket.masks) == (tmp_path / "a").stat().st_size
    tied = {"a": torch.ones(100, 10), "b": torch.ones(3)}
    tied["c"] = tied["a"]
    assert 4 * 1003 < costs.dense_bytes(tied) < 4 * 1003 + 400


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (convolutional(), (2, 8, 8)),
        (nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)), (2, 5, 5)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    ],
)
def test_dense_products_are_pytorchs(model, shape):
    sample = torch.randn(1, *shape)
    torch.backends.mha.set_fastpath_enabled(False)  # which FlopCounterMode does not look into
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            model.eval()(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    products = costs.Products(model, sample)
    assert products.dense == counter.get_total_flops() / 2 > 0
    assert products.remaining(model.state_dict()) == products.dense
    assert torch.backends.mha.get_fastpath_enabled()


def test_products_of_what_remains():
    model = convolutional()
    products = costs.Products(model, torch.zeros(1, 2, 8, 8))
    assert products.of_weights == {"0.weight": 64 * 144, "3.weight": 9 * 288, "5.weight": 360} and products.others == 0
    state = model.state_dict()
    state["0.weight"] = state["0.weight"].clone()
    state["0.weight"][:2] = 0
    assert products.remaining(state) == 64 * 108 + 9 * 288 + 360


def test_attention_is_counted_and_its_zeros_are_not():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    products = costs.Products(model, torch.randn(1, 5, 8))
    assert products.others == 2 * 5 * 5 * 8
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    assert products.remaining(state) == products.others


def test_the_model_stays_as_it_was():
    model = convolutional().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs.Products(model, torch.randn(1, 2, 8, 8))
    latency.measure(model, tickets_of(model)[1].state_dict, torch.randn(2, 2, 8, 8), budget=0.001)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def results_of(tickets: Tickets) -> dict:
    return {"rows": [{"round": ticket.round, "density": ticket.density, "pools": {}} for ticket in tickets]}


def test_costs_in_results(monkeypatch):
    monkeypatch.setattr(latency, "BUDGET", 0.001)
    model = convolutional()
    tickets = tickets_of(model)
    results = results_of(tickets)
    results["rows"][1]["pools"]["mine"] = {}
    costs.add(results, model, tickets, {"mine": [tickets[1]]}, torch.randn(20, 2, 8, 8), progress=False)
    about, (dense, half) = results["costs"], (row["costs"] for row in results["rows"])
    assert half["layers"] == {"0.weight": 0.5, "3.weight": 0.5, "5.weight": 0.5}
    assert dense["products"] == about["products"] == 2 * half["products"]
    assert half["bytes"] < dense["bytes"] and costs.fit(results)
    assert results["rows"][1]["pools"]["mine"]["costs"] == {key: half[key] for key in ("layers", "products")}
    assert about["latency"]["batch"] == latency.BATCH and about["latency"]["threads"] == torch.get_num_threads()
    assert all(half["latency"][size][how] > 0 for size in ("one", "batch") for how in ("pytorch", "sparse"))


def test_without_latency_no_network_is_timed(monkeypatch):
    monkeypatch.setattr(latency, "measure", None)
    results = results_of(tickets := tickets_of(model := convolutional()))
    costs.add(results, model, tickets, {}, torch.randn(2, 2, 8, 8), latency=False, progress=False)
    assert "products" in results["costs"] and "latency" not in results["costs"]
    costs.add(results, model, tickets, {}, None, progress=False)
    assert set(results["costs"]) == {"bytes"} and set(results["rows"][1]["costs"]) == {"layers", "bytes"}


def test_a_network_that_can_not_be_sparsified_is_said_to_be_so():
    model = Unsupported()
    results = results_of(tickets := tickets_of(model))
    costs.add(results, model, tickets, {}, torch.rand(2, 6), progress=False)
    assert "latency" not in results["costs"] and all("latency" not in row["costs"] for row in results["rows"])
    assert results["costs"]["problem"].startswith("lpk.sparsify does not take the network: ")
    assert results["rows"][1]["costs"]["products"] == 9


def test_a_network_that_fails_on_the_cpu_costs_bytes_all_the_same():
    results = results_of(tickets := tickets_of(model := convolutional()))
    costs.add(results, model, tickets, {}, torch.rand(2, 3, 8, 8), progress=False)
    assert "on the CPU" in results["costs"]["problem"] and results["rows"][1]["costs"]["bytes"] > 0


def test_calls_take_turns_within_their_budget():
    order = []
    found = latency.in_turns(
        {"a": lambda: order.append("a") or time.sleep(0.002), "b": lambda: order.append("b")}, 0.02
    )
    assert order[:4] == ["a", "b", "a", "b"] and 0.002 <= found["a"] < 0.02 and found["b"] < 0.001
    assert 2 * 3 <= len(order) <= 2 * (latency.MOST + 1)
    order.clear()
    latency.in_turns({"a": lambda: order.append("a")}, 0.0)
    assert order == ["a", "a"]  # one to prepare, one that counts


def test_one_sample_and_all_of_them_are_timed_and_both_ways_compute_the_same(monkeypatch):
    outputs = []

    def called(calls, budget):
        outputs.append([call() for call in calls.values()])
        return dict.fromkeys(calls, budget)

    monkeypatch.setattr(latency, "in_turns", called)
    model = convolutional()
    found = latency.measure(model, tickets_of(model)[1].state_dict, torch.randn(3, 2, 8, 8), budget=0.5)
    assert list(found.values()) == [{"pytorch": 0.5, "sparse": 0.5}] * 2
    for count, (dense, fast) in zip((1, 3), outputs, strict=True):
        assert len(dense) == count
        torch.testing.assert_close(fast, dense)
