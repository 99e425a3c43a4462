"""`~` in every path that a user gives, and a working directory that changes."""

import os
import typing

import pytest
import torch

import lpk
from lpk import cli, export, options, sparse
from lpk.tickets.pooled import Pooled
from tests.command import here
from tests.conftest import make_network
from tests.pruning.perceptron import OPTIMIZERS, OPTIONS, mlp, trains
from tests.same import same

sgd = trains(OPTIMIZERS["sgd"])


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory; the working directory is another one, and stays empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir()), "something was written to a folder called ~"


def test_the_home_directory_in_every_path(home):
    tickets = lpk.imp(mlp(), sgd, store="~/store", **OPTIONS)
    assert (home / "store" / "tickets.json").exists()
    tickets.save("~/saved")
    assert same(lpk.Tickets.load("~/saved"), tickets)
    for i, ticket in enumerate(tickets):
        torch.save(ticket.state_dict, home / f"{i}.pt")
    assert same(lpk.Tickets.from_checkpoints("~/", model=mlp(), prunable=tickets.layout.prunable), tickets)
    assert len(lpk.Tickets.from_checkpoints(["~/0.pt", "~/1.pt"])) == 2
    with pytest.raises(ValueError, match="is lpk's own"):
        lpk.Tickets.from_checkpoints("~/saved")
    pooled = lpk.pool("~/saved", 1, model=mlp(), evaluate=lambda m: float(m[0].bias.sum()), progress=False)
    pooled.save("~/pooled.safetensors")
    assert Pooled.wrote("~/pooled.safetensors") and Pooled.load("~/pooled.safetensors").round == 1
    fast = lpk.sparsify(mlp(), "~/pooled.safetensors")
    fast.save("~/sparse.safetensors")
    lpk.sparsify(mlp(), "~/sparse.safetensors")
    sparse.save_sparse("~/own.safetensors", pooled.state_dict, pooled.masks)
    assert sparse.load_sparse("~/own.safetensors")[0].keys() == pooled.state_dict.keys()
    export.state_dict(pooled.state_dict, "~/plain.safetensors")
    export.program(mlp(), "~/program.pt2", (8,))
    assert len(list(home.glob("*.safetensors"))) == 4 and (home / "program.pt2").exists()


def test_the_home_directory_on_the_command_line(home):
    for i, ticket in enumerate(lpk.imp(make_network(), lambda model, a, b: nudge(model), **OPTIONS)):
        torch.save(ticket.state_dict, home / f"{i}.pt")
    status, _, error = here("import", "~/0.pt", "~/1.pt", "~/2.pt", "~/run")
    assert status == 0 and len(lpk.Tickets.load(home / "run")) == 3, error
    status, _, error = here("export", "~/run", "~/out", "--target", 1, "--method", "ticket")
    assert status == 0 and (home / "out").exists(), error
    status, _, error = here("report", "~/run")
    assert status == 1 and f"{home}/run/results.json does not exist" in error


def test_every_path_of_the_command_line_is_expanded():
    for command in cli.app.registered_commands:
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            if "Path" in str(hint):
                assert hint.__metadata__[0].parser is options.user_path, f"{command.callback.__name__}: {name}"


def nudge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * (parameter != 0)


def test_a_train_that_changes_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(model, start, stop):
        sgd(model, start, stop)
        os.makedirs("work", exist_ok=True)
        os.chdir("work")

    tickets = lpk.imp(mlp(), train, store="store", **OPTIONS)
    assert same(lpk.Tickets.load(tmp_path / "store"), tickets)
    assert not list(tmp_path.glob("work/**/store"))
