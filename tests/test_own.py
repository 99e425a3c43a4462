"""Commands on tickets of a network that only a user's own functions can build."""

import json
import os
import sys

import pytest
import torch

import lpk
from lpk.sparse import load_sparse
from lpk.tickets.pooled import Pooled
from tests.command import error, here
from tests.command import lpk as command
from tests.conftest import make_network

FUNCTIONS = """
import torch
from tests.conftest import make_images, make_network

def data():
    inputs, _ = make_images(160, seed=3)
    return {"validation": make_images(203, seed=2), "calibration": inputs, "test": make_images(99, seed=4)}

class Loaders:
    validation = torch.utils.data.TensorDataset(*make_images(203, seed=2))
    test = staticmethod(lambda model: model(make_images(99, 4)[0]).amax(1))

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


def test_info_of_files(tickets, functions):
    tickets.save("store")
    lpk.sparse.save_sparse("net", tickets[2].state_dict, tickets[2].masks)
    for path, kind in (("net", "sparse network"), (next((functions / "store").glob("round-02*")), "ticket")):
        found = json.loads(command("info", path, "--json"))
        assert found["kind"] == kind and found["networks"][0]["remaining"] == tickets[2].keep
    torch.save(tickets[2].state_dict, "own.pt")
    assert json.loads(command("info", "own.pt", "--json"))["kind"] == "checkpoint"
    (functions / "text").write_text("no network")
    for path, message in (
        ("text", "no PyTorch file"),
        ("nowhere", "does not exist"),
        ("store/tickets.json", "name that"),
    ):
        assert message in error("info", path)
    assert here("info")[0] == 2
