"""`lpk export` and `lpk info` on a run."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from lpk import models
from lpk.sparse import load_sparse
from lpk.tickets import files
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from tests.command import error, lpk


def test_export(run, preset, tmp_path):
    ticket, pooled = Tickets.load(run)[2], Pooled.load(run / "pooled" / "interpolation" / "round-02.safetensors")
    dense = sum(tensor.nbytes for tensor in ticket.state_dict.values())
    for options, network, masks in (
        ((), pooled.state_dict, pooled.masks),
        (("--method", "ticket", "--format", "sparse"), ticket.state_dict, ticket.masks),
    ):
        text = lpk("export", run, tmp_path / "net", "--target", 2, "--force", *options)
        size = (tmp_path / "net").stat().st_size
        assert f"{size:,} bytes, {size / dense:.1%} of the dense network's {dense:,}" in text
        state, read = load_sparse(tmp_path / "net")
        assert all(torch.equal(state[name], tensor) for name, tensor in network.items())
        assert all(torch.equal(read[name], mask) for name, mask in masks.items())
    lpk("export", run, tmp_path / "plain", "--target", 2, "--format", "state-dict")
    read = safetensors.torch.load_file(tmp_path / "plain")
    assert all(torch.equal(read[name], tensor) for name, tensor in pooled.state_dict.items())
    lpk("export", run, tmp_path / "net.pt2", "--target", 2, "--format", "torch")
    program = torch.export.load(tmp_path / "net.pt2").module()
    images = torch.randn(3, 1, 8, 8)
    model = models.build("small-resnet", classes=10, shape=(1, 8, 8), widths=(8, 16)).eval()
    model.load_state_dict(pooled.state_dict)
    torch.testing.assert_close(program(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format", ["sparse", "state-dict"])
def test_export_looks_for_no_data_set(run, tmp_path, monkeypatch, format):
    monkeypatch.setattr("lpk.run.load_data", None)
    for method in ("interpolation", "ticket"):
        lpk("export", run, tmp_path / method, "--target", 2, "--method", method, "--format", format)


def test_errors_of_export(run, tmp_path):
    for arguments, message in (
        ((run, "--target", 9), "no pooled network of round 9 by interpolation; `lpk pool"),
        ((run, "--target", 9, "--method", "ticket"), "no ticket of round 9"),
        ((run, "--target", 1, "--method", "best"), "method is 'best'"),
        ((run, "--target", 1, "--format", "gif"), "format is 'gif'"),
        ((tmp_path, "--target", 1), "not a run directory"),
    ):
        assert message in error("export", *arguments, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_replaces_nothing_and_makes_no_directory_unless_it_is_forced(run, tmp_path):
    there, away = tmp_path / "there", tmp_path / "far" / "away" / "net"
    there.write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    command = ("export", run, "--target", 1, "--method", "ticket")
    for out, message in (
        (there, "there exists already; --force replaces it"),
        (tmp_path / "link", "link exists already; --force replaces it"),
        (tmp_path, "exists already"),
        (away, "away is no directory; --force makes it"),
        (there / "net", "there is no directory"),
    ):
        assert message in error(*command, out)
    assert there.read_text() == "mine" and {path.name for path in tmp_path.iterdir()} == {"there", "link"}
    for out in (there, away):
        lpk(*command, out, "--force")
        assert load_sparse(out)
    assert str(tmp_path) in error(*command, tmp_path, "--force")  # what is no file is not replaced by one


def test_info_of_a_run_and_of_its_files(run, tmp_path, monkeypatch):
    """Without its data set."""
    monkeypatch.setattr("lpk.run.load_data", None)
    results = json.loads((run / "results.json").read_text())
    found = json.loads(lpk("info", run, "--json"))
    assert (found["kind"], found["products"]) == ("run", results["costs"]["products"])
    assert (found["origin"]["preset"]["name"], found["origin"]["rounds"]) == ("tiny", 3)  # its own and its tickets'
    assert found["pooled"] == {name: [0, 1, 2, 3] for name in ("average", "ema", "interpolation", "swa")}
    for network, row in zip(found["networks"], results["rows"], strict=True):
        assert (network["round"], network["remaining"]) == (row["round"], row["keep"])
        assert (network["products"], network["layers"]) == (row["costs"]["products"], row["costs"]["layers"])
    pooled = run / "pooled" / "interpolation" / "round-02.safetensors"
    ticket = next((run / "tickets").glob("round-02-*"))
    pool = results["rows"][2]["pools"]["interpolation"]["costs"]
    for path, kind, products in (
        (pooled, "pooled network", pool["products"]),
        (ticket, "ticket", results["rows"][2]["costs"]["products"]),
    ):
        found = json.loads(lpk("info", path, "--json"))
        assert (found["kind"], found["networks"][0]["products"]) == (kind, products)
    dense = next((run / "tickets").glob("round-00-*"))  # without zeros: which tensors are prunable says tickets.json
    assert json.loads(lpk("info", dense, "--json"))["networks"][0]["weights"] == results["rows"][0]["keep"]
    found = json.loads(lpk("info", run / "results.json", "--json"))
    assert (found["kind"], found["methods"], found["rounds"]) == ("results", results["methods"], 4)
    for arguments, message in (
        (("--model", "a:b", "--shape", "1"), "which names the network: leave --model out"),
        (("--shape", "1,8,8"), "whose preset names its data: leave --data and --shape out"),
    ):
        assert message in error("info", run, *arguments)


def test_info_of_a_run_whose_network_is_not_its_presets(run, tmp_path):
    """As one that `lpk import` took with a data set of fewer classes is not."""
    shutil.copytree(run / "tickets", tmp_path / "tickets")
    manifest = files.read_json(run / "manifest.json")
    for options, problem in (
        ({"widths": [8, 17]}, "it has 'layer2.0.conv1.weight' of the shape [17, 8, 3, 3], and"),
        ({"widths": [8, 16, 32]}, "it has 'layer3.0.conv1.weight' of the shape [32, 16, 3, 3], and"),
        ({"widths": [0]}, "every size in it must be at least 1"),
    ):
        model = {**manifest["preset"]["model"], **options}
        files.write_json(tmp_path / "manifest.json", {**manifest, "preset": {**manifest["preset"], "model": model}})
        found = json.loads(lpk("info", tmp_path, "--json"))
        assert "products" not in found and not any("products" in each for each in found["networks"])
        assert found["problem"].startswith("multiply-adds are not known: ") and problem in found["problem"]
        assert found["problem"] in lpk("info", tmp_path)


def test_info_of_experiments(preset, tmp_path):
    lpk("run", "disagreement", "--preset", preset, "--seeds", 1, "--out", tmp_path / "study", "--threads", 1, "--quiet")
    found = json.loads(lpk("info", tmp_path / "study", "--json"))
    assert (found["kind"], found["experiments"]) == ("experiments", ["disagreement"])
    for path in (tmp_path / "study" / "disagreement", tmp_path / "study" / "disagreement" / "results.json"):
        found = json.loads(lpk("info", path, "--json"))
        assert (found["kind"], found["origin"]["experiment"]) == ("experiment", "disagreement")
    assert "\n  summary: Adjacent tickets disagree" in lpk("info", tmp_path / "study" / "disagreement")
