"""lpk.run: a run keeps to its directory, and to what it made there."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lpk import presets
from lpk.experiments import demo
from lpk.run import Run
from lpk.tickets.pooled import Pooled
from lpk.tickets.store import MANIFEST
from lpk.tickets.tickets import Tickets
from tests.command import error
from tests.conftest import TINY_PRESET, random_tickets
from tests.content import content
from tests.same import same


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> presets.Preset:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return presets.load(path)


@pytest.fixture
def pooled(tickets) -> Pooled:
    ticket = tickets[2]
    return Pooled(2, ticket.layout, ticket.flat, ticket.mask, 0.5, 0.5, (), 0, 0, 0.0, {})


# --- what is there already --------------------------------------------------------------------------------------------


def test_tickets_saved_among_pooled_networks(tickets, pooled, preset, tmp_path):
    with Run.create(tmp_path, preset, seed=4) as created:
        place = created.pooled_path("interpolation", 2)
        pooled.save(place)
        tickets.save(place.parent)
        found = created.pooled()
    assert list(found) == ["interpolation"] and [each.round for each in found["interpolation"]] == [2]
    assert torch.equal(found["interpolation"][0].flat.weights, pooled.flat.weights)


@pytest.mark.parametrize("name", ["results.json", "report.html", "accuracy.svg", "pooled", "pools", "tickets"])
def test_a_directory_with_a_users_results_becomes_no_run(preset, tmp_path, name):
    if name == "tickets":
        random_tickets(0).save(tmp_path / name)
    else:
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    with (
        pytest.raises(ValueError, match=f"holds {name} already; use another directory"),
        Run.create(tmp_path, preset, seed=4),
    ):
        pass
    assert content(tmp_path) == before and not (tmp_path / ".lock").exists()


# --- links and working directories ------------------------------------------------------------------------------------


PARTS = ("tickets", "pooled", "pooled/swa", "pools", ".lock", "manifest.json", "results.json", "report.html")


@pytest.mark.parametrize("part", [*PARTS, "accuracy.svg"])
def test_a_run_with_a_link_in_it_is_refused_before_anything_is_written(preset, tmp_path, part):
    path, outside = tmp_path / "run", tmp_path / "outside"
    with Run.create(path, preset, seed=4):
        pass
    outside.mkdir()
    (outside / "round-best.safetensors").write_bytes(b"mine")
    place = path / part
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(outside / "file")
    place.symlink_to(outside / "file" if "." in part else outside)
    before = content(tmp_path)
    for opened in (Run.create(path, preset, seed=4), Run.open(path)):
        with pytest.raises(ValueError, match=f"{part} is a symbolic link"), opened:
            pass
    assert content(tmp_path) == before


def test_tickets_are_not_imported_through_a_link(tmp_path):
    for i, ticket in enumerate(random_tickets(0)):
        torch.save(ticket.state_dict, tmp_path / f"{i}.pt")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tickets").symlink_to(tmp_path / "outside")
    assert "tickets is a symbolic link" in error("import", *sorted(tmp_path.glob("*.pt")), tmp_path / "run")
    assert not list((tmp_path / "outside").iterdir())


def test_a_run_that_is_itself_a_link(preset, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with Run.create(tmp_path / "run", preset, seed=4) as created:
        assert created.path == tmp_path / "disk"
    assert (tmp_path / "disk" / "manifest.json").exists()


def test_a_run_stays_where_it_began(preset, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Run.create(Path("run"), preset, seed=4, root=Path("~/data")) as created:
        os.chdir("elsewhere")
        created.make_pooled_directory("swa")
        assert created.path == tmp_path / "run" and (tmp_path / "run" / "pooled" / "swa").is_dir()
        assert created.manifest["data_root"] == str(tmp_path / "home" / "data")
    made = random_tickets(0)
    made.save("~/runs/a")
    assert same(Tickets.load("~/runs/a"), made) and (tmp_path / "home" / "runs" / "a" / MANIFEST).exists()
    assert not list((tmp_path / "elsewhere").iterdir())


# --- a directory that is removed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", ["", "pooled", "pooled/swa"])
def test_a_run_that_is_removed_while_it_pools_is_not_made_again(
    preset, tickets, pooled, tmp_path, monkeypatch, removed
):
    path = tmp_path / "run"

    def pool(*_, on_pool, **__):
        shutil.rmtree(path / removed)
        on_pool(pooled)

    monkeypatch.setattr(demo, "pool", pool)
    with (
        pytest.raises(OSError, match=r"cannot write .*round-02.*(gone|removed)"),
        Run.create(path, preset, seed=4) as created,
    ):
        demo.make_pools(created, tickets, method="swa", target=2)
    assert not (path / removed).exists()
