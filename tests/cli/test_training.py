"""`lpk demo`, `lpk imp` and `lpk import` on a tiny preset of scikit-learn's digits.

What is killed runs in a process of its own, and ends with the bits of the demo, which runs in this one.
"""

import json
import signal
import time

import pytest
import torch

from lpk import models, presets
from lpk.cli import training
from lpk.data import sets as data
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from tests.command import error, lpk, start
from tests.conftest import TINY_PRESET
from tests.same import same


def test_demo_leaves_everything_it_promises(run):
    results = json.loads((run / "results.json").read_text())
    tickets = Tickets.load(run)
    assert [row["keep"] for row in results["rows"]] == [t.keep for t in tickets] and len(tickets) == 4
    for method in ("interpolation", "average", "swa", "ema"):
        assert len(list((run / "pooled" / method).glob("round-*.safetensors"))) == 4
        assert all(method in row["pools"] for row in results["rows"])
    for row in results["rows"]:
        pool = row["pools"]["interpolation"]
        assert pool["validation_accuracy"] >= pool["baseline_validation_accuracy"]
        assert pool["gain"]["low"] <= pool["gain"]["gain"] <= pool["gain"]["high"]
        assert pool["gain"]["gain"] == pytest.approx(pool["accuracy"] - row["ticket"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 4 and manifest["versions"]["threads"] == 1 and "demo" in manifest["command"]
    assert {"lpk", "torch", "instruction_set"} <= set(manifest["versions"])
    assert "<svg" in (run / "report.html").read_text() or "data:image" in (run / "report.html").read_text()


def test_steps_one_by_one_equal_the_demo(run, preset, tmp_path):
    path = tmp_path / "steps"
    lpk("imp", path, "--preset", preset, "--seed", 4, "--threads", 1, "--quiet")
    assert same(Tickets.load(path), Tickets.load(run))
    lpk("pool", path, "--threads", 1, "--quiet")
    lpk("pool", path, "--method", "average", "--target", 2, "--threads", 1, "--quiet", "--seed", 4)
    lpk("pool", path, "--criterion", "loss", "--target", 1, "--threads", 1, "--quiet")
    text = lpk("eval", path, "--threads", 1, "--quiet", "--no-latency")
    assert "%" in text and "by loss" in text and "M mult-adds" in text and "\nRecommended: the " in text
    lpk("report", path)
    ours, theirs = (json.loads((p / "results.json").read_text()) for p in (path, run))
    assert ours["methods"] == ["interpolation", "average", "interpolation-loss"]
    assert theirs["costs"].pop("latency")["threads"] == 1 and ours["costs"] == theirs["costs"]
    for a, b in zip(ours["rows"], theirs["rows"], strict=True):
        assert a["ticket"] == b["ticket"]
        assert a["pools"]["interpolation"]["accuracy"] == b["pools"]["interpolation"]["accuracy"]
    assert "average" not in ours["rows"][1]["pools"] and "average" in ours["rows"][2]["pools"]


@pytest.fixture
def interruptible():
    """Child processes take SIGINT, even where the tests were started in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_imp_is_in_use_until_then_and_goes_on_to_the_same_tickets(run, preset, tmp_path, kill):
    path = tmp_path / "killed"
    arguments = ("imp", path, "--preset", preset, "--seed", 4, "--threads", 1, "--quiet")
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while not list((path / "tickets").glob("round-00-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    assert "in use by another process" in error(*arguments)
    process.send_signal(kill)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not list((path / "tickets").glob("round-03-*")), "it had finished before it was killed"
    lpk(*arguments)
    assert same(Tickets.load(path), Tickets.load(run))
    leftover = {p.name for p in (path / "tickets").iterdir()} - {"tickets.json", "rewind.safetensors", ".lock"}
    assert all(name.startswith("round-") or name.startswith(".") for name in leftover)


def test_more_rounds_are_as_if_asked_for_at_once(run, preset, tmp_path):
    fewer, path = tmp_path / "fewer.toml", tmp_path / "run"
    fewer.write_text(TINY_PRESET.replace("rounds = 3", "rounds = 1"))
    lpk("imp", path, "--preset", fewer, "--seed", 4, "--threads", 1, "--quiet")
    assert same(Tickets.load(path), Tickets.load(run)[:2])
    lpk("imp", path, "--preset", preset, "--seed", 4, "--threads", 1, "--quiet")
    assert same(Tickets.load(path), Tickets.load(run))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["preset"] == presets.load(preset).to_dict() and "tiny.toml" in manifest["command"]
    assert "rounds is 3, not 1" in error("imp", path, "--preset", fewer, "--seed", 4)


def test_a_run_keeps_to_what_it_is_trained_in(run, tmp_path):
    """--autocast takes the preset's place; a run that was begun goes on with nothing else."""
    plain, halved, path = tmp_path / "plain.toml", tmp_path / "halved.toml", tmp_path / "run"
    plain.write_text(TINY_PRESET.replace("rounds = 3", "rounds = 0"))
    halved.write_text(plain.read_text().replace("[train]", '[train]\nautocast = "bfloat16"'))
    options = ("--seed", 4, "--threads", 1, "--quiet")
    lpk("imp", path, "--preset", plain, "--autocast", "bfloat16", *options)
    made, manifest = Tickets.load(path), (path / "manifest.json").read_bytes()
    assert json.loads(manifest)["preset"]["train"]["autocast"] == "bfloat16"
    assert not same(made, Tickets.load(run)[:1])
    for arguments in (
        ("--preset", plain),
        ("--preset", plain, "--autocast", "float32"),
        ("--preset", halved, "--autocast", "float32"),
    ):
        assert "another preset; autocast is bfloat16, not None; use" in error("imp", path, *arguments, *options)
    assert same(Tickets.load(path), made) and (path / "manifest.json").read_bytes() == manifest
    lpk("imp", path, "--preset", halved, *options)  # another name alone
    assert same(Tickets.load(path), made)

    lpk("imp", tmp_path / "float32", "--preset", halved, "--autocast", "float32", *options)
    assert same(Tickets.load(tmp_path / "float32"), Tickets.load(run)[:1])
    assert "autocast is None, not bfloat16" in error("imp", tmp_path / "float32", "--preset", halved, *options)
    message = "autocast is 'float16'; it must be one of bfloat16, float32"
    assert message in error("imp", tmp_path / "x", "--preset", plain, "--autocast", "float16")
    assert not (tmp_path / "x").exists()


def test_imported_tickets_are_pooled_and_evaluated(run, preset, tmp_path):
    """The run's tickets as the paper's code would have saved them, imported under a preset and without one."""
    theirs, imported = tmp_path / "theirs", tmp_path / "imported"
    theirs.mkdir()
    model = models.build("small-resnet", classes=10, shape=(1, 8, 8), widths=(8, 16))
    for ticket in Tickets.load(run):
        if ticket.round == 0:
            model.load_state_dict(ticket.state_dict)
        else:
            ticket.to_prune(model)
        state = model.state_dict() | {"normalize.mean": torch.zeros(1), "normalize.std": torch.ones(1)}
        torch.save({"state_dict": state, "epoch": 3}, theirs / f"{ticket.round}model_SA_best.pth.tar")

    assert "4 tickets, densities 100.0% to" in lpk("import", theirs, imported, "--preset", preset, "--seed", 4)
    assert same(Tickets.load(imported), Tickets.load(run))
    lpk("pool", imported, "--threads", 1, "--quiet")
    lpk("eval", imported, "--threads", 1, "--quiet")
    ours, made = (json.loads((p / "results.json").read_text()) for p in (imported, run))
    for a, b in zip(ours["rows"], made["rows"], strict=True):
        assert a["ticket"] == b["ticket"]
        assert a["pools"]["interpolation"]["accuracy"] == b["pools"]["interpolation"]["accuracy"]
    assert ours["manifest"]["imported"] == [str(theirs)]

    lpk("import", *sorted(theirs.iterdir()), tmp_path / "plain")
    assert len(Tickets.load(tmp_path / "plain")) == 4
    for arguments, message in (
        ((theirs, tmp_path / "plain"), "holds tickets already"),
        ((theirs, tmp_path / "x", "--model", "mlp"), "--model needs --preset"),
        ((theirs, tmp_path / "x", "--preset", preset, "--model", "mlp"), "the model is another network than"),
        ((tmp_path / "nothing", tmp_path / "x"), "nothing does not exist"),
    ):
        err = error("import", *arguments)
        assert message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "x" / "manifest.json").exists(), "a failed import left a run behind"
    more = tmp_path / "more.toml"
    more.write_text(TINY_PRESET.replace("rounds = 3", "rounds = 4"))
    before = (imported / "manifest.json").read_bytes()
    for wanted in (preset, more):
        assert "use another directory" in error("imp", imported, "--preset", wanted, "--seed", 4)
    assert same(Tickets.load(imported), Tickets.load(run)) and (imported / "manifest.json").read_bytes() == before


def test_checkpoints_of_an_unsupported_dtype_are_one_line(tmp_path):
    torch.save({"0.weight": torch.eye(3, dtype=torch.float64)}, tmp_path / "0.pt")
    err = error("import", tmp_path / "0.pt", tmp_path / "run")
    assert "0.pt: '0.weight' is torch.float64; float32, float16 and bfloat16 are supported" in err


def test_demo_falls_back_to_digits(tmp_path, monkeypatch):
    """Without Fashion-MNIST and without a network: one line says so, and the preset for the digits is used."""

    def offline(name, **options):
        if name == "fashion-mnist":
            raise data.DataNotFound("nowhere")
        return data.load(name, **options)

    monkeypatch.setattr("lpk.run.load_data", offline)
    monkeypatch.setattr(training, "_demo", lambda run, quiet, latency: print("preset", run.preset.name))
    out = lpk("demo", tmp_path / "run")
    assert "handwritten digits" in out and "preset digits" in out
    assert presets.load("digits").data.name == "digits"


def test_a_preset_says_what_and_where_imp_prunes(tmp_path):
    """A pool keeps as many weights of each layer as its ticket. With a density, more rounds are another run."""
    asked = 'density = 0.2\nscope = "layer"\nrestart = "learning-rate"'
    for rounds in (2, 3):
        text = TINY_PRESET.replace("fraction = 0.3", asked).replace("rounds = 3", f"rounds = {rounds}")
        (tmp_path / f"{rounds}.toml").write_text(text)
    path = tmp_path / "run"
    lpk("imp", path, "--preset", tmp_path / "2.toml", "--threads", 1, "--quiet")
    metadata = json.loads((path / "tickets" / "tickets.json").read_text())["metadata"]
    said = {key: metadata[key] for key in ("density", "fraction", "scope", "floor", "restart")}
    assert said == dict(density=0.2, fraction=None, scope="layer", floor=0, restart="learning-rate")
    lpk("pool", path, "--target", 1, "--threads", 1, "--quiet")
    ticket, pooled = Tickets.load(path)[1], Pooled.load(path / "pooled/interpolation/round-01.safetensors")
    counts = {name: int(mask.count_nonzero()) for name, mask in ticket.masks.items()}
    assert counts == {name: int(mask.count_nonzero()) for name, mask in pooled.masks.items()}
    assert pooled.settings["scope"] == "layer"
    before = (path / "manifest.json").read_bytes()
    assert "rounds is 2, not 3; use another" in error("imp", path, "--preset", tmp_path / "3.toml", "--threads", 1)
    assert (path / "manifest.json").read_bytes() == before
    line = error("run", "averages", "--preset", tmp_path / "2.toml", "--out", tmp_path / "study")
    assert "2: [imp] scope is 'layer', which the paper's experiments lack" in line
