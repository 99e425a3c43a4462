"""Commands on tickets of a network that only a user's own functions can build."""

import json
import os
import sys

import pytest
import safetensors.torch
import torch

import lpk
from lpk import own
from lpk.sparse import load_sparse
from lpk.tickets.pooled import Pooled
from tests.command import error, here
from tests.command import lpk as command
from tests.conftest import make_images, make_network, sgd

FUNCTIONS = """
import torch
from tests.conftest import make_images, make_network

def data():
    inputs, _ = make_images(160, seed=3)
    return {"validation": make_images(203, seed=2), "calibration": inputs, "test": make_images(99, seed=4)}

class Loaders:
    validation = torch.utils.data.TensorDataset(*make_images(203, seed=2))
    test = staticmethod(lambda model: model(make_images(99, 4)[0]).amax(1))

def drawn(): return torch.nn.Linear(2, 2)
def split(): return {"test": torch.randn(4, 2)}
def wider(): return torch.nn.Sequential(torch.nn.Conv2d(1, 9, 3))
def other(): return torch.nn.Linear(5, 2)
def nothing(): return {"train": 1}
def wrong(): return 3
def raises(): return make_network()["x"]
"""
OWN = ("--model", "own_functions:make_network", "--data", "own_functions.py:data")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("own_functions", None)


@pytest.fixture(params=["store", "imported", "checkpoints"])
def directory(request, tickets, functions):
    path = functions / request.param
    if request.param == "store":
        tickets.save(path)
    else:
        folder = functions / "checkpoints"
        folder.mkdir()
        for ticket in tickets:
            torch.save(ticket.state_dict, folder / f"{ticket.round}.pt")
        if request.param == "imported":
            command("import", folder, path)
    return path


def test_pool_eval_report_and_export(directory, tickets, validation, calibration):
    options = {"validation": validation, "calibration": calibration, "progress": False}
    expected = lpk.pool(tickets, 3, model=make_network(), candidates=1, **options)
    command("pool", directory, *OWN, "--target", 3, "--candidates", 1, "--quiet")
    pooled = Pooled.load(directory / "pooled" / "interpolation" / "round-03.safetensors")
    assert torch.equal(pooled.flat.weights, expected.flat.weights) and pooled.accuracy == expected.accuracy
    command("eval", directory, *OWN, "--quiet")
    results = json.loads((directory / "results.json").read_text())
    assert len(results["rows"]) == len(tickets) and list(results["rows"][3]["pools"]) == ["interpolation"]
    (directory / "report.html").unlink(missing_ok=True)
    command("report", directory)
    assert (directory / "report.html").exists()
    for method, network in (("interpolation", pooled), ("ticket", tickets[3])):
        command("export", directory, "net", "--target", 3, "--method", method, "--force")
        state, masks = load_sparse("net")
        assert all(torch.equal(state[name], x) for name, x in network.state_dict.items())
        assert all(torch.equal(masks[name], mask) for name, mask in network.masks.items())
    command("export", directory, "net.pt2", "--target", 3, "--format", "torch", *OWN)
    images = torch.randn(3, 1, 6, 6)
    model = make_network().eval()
    model.load_state_dict(pooled.state_dict)
    torch.testing.assert_close(torch.export.load("net.pt2").module()(images), model(images), rtol=1e-5, atol=1e-6)


def test_what_functions_draw_is_the_same_for_each_command(tickets, functions):
    """Whatever was drawn before: a split at random, say, must be one."""
    tickets.save("store")
    drawn = []
    for seed in (3, 4):
        with own.opened(functions / "store", model="own_functions:drawn", data="own_functions:split") as opened:
            torch.manual_seed(seed)
            weight = opened.model().state_dict()["weight"]
            torch.manual_seed(seed)
            drawn.append((weight, opened.samples("test")))
    assert all(map(torch.equal, *drawn))


def test_pools_keep_to_the_scope_of_lpk_imp(functions, network):
    """Of a store and of checkpoints, which don't say it; an option says it of both."""
    tickets = lpk.imp(
        network, sgd(*make_images(64, 1)), epochs=1, rounds=2, scope="layer", store="store", progress=False
    )
    os.mkdir("checkpoints")
    for ticket in tickets:
        torch.save(ticket.state_dict, f"checkpoints/{ticket.round}.pt")
    for path, options, scope in (
        ("store", (), "layer"),
        ("store", ("--scope", "global"), "global"),
        ("checkpoints", (), "global"),
        ("checkpoints", ("--scope", "layer"), "layer"),
    ):
        command("pool", path, *OWN, *options, "--target", 1, "--quiet")
        assert Pooled.load(functions / path / "pooled/interpolation/round-01.safetensors").settings["scope"] == scope
    assert "scope is 'layers'" in error("pool", "store", *OWN, "--scope", "layers")


def test_an_object_of_datasets_and_functions(tickets, functions):
    tickets.save("store")
    names = ("--model", "own_functions:make_network", "--data", "own_functions:Loaders")
    with pytest.warns(UserWarning, match="no calibration samples"):
        command("pool", "store", *names, "--target", 3, "--candidates", 1, "--quiet")
    text = command("eval", "store", *names, "--quiet")
    results = json.loads((functions / "store" / "results.json").read_text())
    assert results["metric"] == {"name": "score", "unit": "", "samples": 99} and "test score" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "`lpk eval store --model module:function --data module:function` does"),
        ("--data own_functions:data", "`lpk eval store --data own_functions:data --model module:function` does"),
        ("--model own_functions:make_networks --data own_functions:data", ". Did you mean 'make_network'?"),
        ("--model nowhere:f --data own_functions:data", "there is no module 'nowhere', neither in"),
        ("--model own_function:f --data own_functions:data", "is needed. Did you mean 'own_functions'?"),
        ("--model tests.comand:f --data own_functions:data", "is needed. Did you mean 'tests.command'?"),
        ("--model own_function.py:f --data own_functions:data", "does not exist. Did you mean 'own_functions.py'?"),
        ("--model nowhere.py:f --data own_functions:data", "nowhere.py does not exist"),
        ("--model network --data own_functions:data", "--model is 'network', and"),
        ("--model own_functions:wrong --data own_functions:data", "returned a int; a module is needed"),
        ("--model own_functions:raises --data own_functions:data", "own_functions:raises: TypeError"),
        ("--model own_functions:make_network --data own_functions:nothing", "returned a dict of 'train'; a dict or"),
        ("--model own_functions:make_network --data own_functions:data --seed 3", "has no seed that --seed"),
    ],
)
def test_errors_are_one_line(tickets, functions, options, message):
    tickets.save("store")
    before = {path.name for path in (functions / "store").iterdir()}
    assert message in error("eval", "store", *options.split())
    assert {path.name for path in (functions / "store").iterdir()} <= before | {".lock"}


def test_what_is_missing_is_named(tickets, functions):
    (functions / "run").mkdir()
    assert "is not a run directory, and holds no tickets" in error("pool", "run", *OWN)
    (functions / "run" / "manifest.json").write_text("{}")
    tickets.save("run/tickets")
    assert f"holds the tickets of the run {os.getcwd()}/run: name that" in error("pool", "run/tickets", *OWN)
    tickets.save("store")
    assert "run `lpk eval store --model module:function --data module:function` first" in error("report", "store")
    made = "--target 1 --method swa --model module:function --data module:function` makes it"
    assert made in error("export", "store", "x", "--target", 1, "--method", "swa")
    (functions / "store" / "results.json").write_text("mine")
    assert "holds results.json, and no report of lpk" in error("eval", "store", *OWN)
    assert (functions / "store" / "results.json").read_text() == "mine"


def test_info(directory, tickets):
    found = json.loads(command("info", directory, "--json"))
    assert found["kind"] in ("tickets", "checkpoints")
    for network, ticket in zip(found["networks"], tickets, strict=True):
        assert (network["round"], network["weights"]) == (ticket.round, ticket.layout.n)
        if found["kind"] == "tickets" and directory.name == "store":
            assert network["remaining"] == ticket.keep and network["density"] == ticket.density
            assert network["layers"] == {n: float(m.double().mean()) for n, m in ticket.masks.items()}
    assert f"round 2: density {100 * tickets[2].density:.2f}%" in command("info", directory)


@pytest.mark.parametrize("input", ["--data own_functions:data", "--shape 1,6,6", "--shape 1x6x6"])
def test_info_counts_multiply_adds(directory, tickets, input):
    command_line = ("info", directory, "--model", "own_functions:make_network", *input.split())
    found = json.loads(command(*command_line, "--json"))
    positions = {"0.weight": 36, "3.weight": 9, "8.weight": 1}  # where each weight is multiplied
    for network, ticket in zip(found["networks"], tickets, strict=True):
        remain = {name: int(ticket.state_dict[name].count_nonzero()) for name in positions}
        assert network["products"] == sum(remain[name] * count for name, count in positions.items())
    assert found["products"] == found["networks"][0]["products"]
    text = command(*command_line)
    assert f"multiply-adds of the dense network, for one sample: {found['products']:,}" in text
    assert f", {found['networks'][3]['products']:,} multiply-adds" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--model own_functions:make_network",
            "multiply-adds need --model, which says what the network is, and --data",
        ),
        ("--shape 1,6,6", "multiply-adds need --model"),
        ("--model own_functions:make_network --shape 1,x", "--shape is '1,x'; whole numbers above 0"),
        ("--model own_functions:make_network --shape 1,0,6", "--shape is '1,0,6'; whole numbers above 0"),
        (
            "--model own_functions:make_network --shape 2,6,6",
            "the network of --model fails with an input of the shape [2",
        ),
        ("--model own_functions:make_networks --shape 1,6,6", "Did you mean 'make_network'?"),
        (
            "--model own_functions:wider --shape 1,6,6",
            "makes another network: it has '0.weight' of the shape [9, 1, 3, 3], and",
        ),
        ("--model own_functions:other --shape 5", "--model makes another network: it has 'weight' of the shape [2, 5]"),
    ],
)
def test_errors_of_info_are_one_line(tickets, functions, options, message):
    tickets.save("store")
    assert message in error("info", "store", *options.split())


def test_info_of_files(tickets, functions):
    tickets.save("store")
    lpk.sparse.save_sparse("net", tickets[2].state_dict, tickets[2].masks)
    for path, kind in (("net", "sparse network"), (next((functions / "store").glob("round-02*")), "ticket")):
        found = json.loads(command("info", path, "--json"))
        assert found["kind"] == kind and found["networks"][0]["remaining"] == tickets[2].keep
    torch.save(tickets[2].state_dict, "own.pt")
    assert json.loads(command("info", "own.pt", "--json"))["kind"] == "checkpoint"
    for name in ("plain", "plain.safetensors"):
        safetensors.torch.save_file(tickets[2].state_dict, name)
        found = json.loads(command("info", name, "--json"))
        assert found["kind"] == "safetensors" and found["networks"][0]["round"] is None
    torch.save(tickets[0].state_dict, "dense.pt")
    assert "\nno tensor is pruned\n" in command("info", "dense.pt") + "\n"
    (functions / "text").write_text("no network")
    for path, message in (
        ("text", "no PyTorch file"),
        ("nowhere", "does not exist"),
        ("store/tickets.json", "name that"),
    ):
        assert message in error("info", path)
    assert here("info")[0] == 2
