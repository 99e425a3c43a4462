"""The `lpk` command as a user runs it, on a tiny preset of scikit-learn's digits.

The demo and what is killed run in processes of their own, and the steps in this one end with the demo's bits.
"""

import io
import json
import os
import re
import shlex
import shutil
import signal
import time
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from lpk import experiments, models, presets, progress, terminal
from lpk.cli import training
from lpk.data import sets as data
from lpk.options import EXPERIMENTS
from lpk.run import Run
from lpk.sparse import load_sparse
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from tests.command import error, here, in_a_process, lpk, start
from tests.conftest import TINY_PRESET
from tests.same import same


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.fixture(scope="module")
def run(preset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    status, _, err = in_a_process("demo", path, "--preset", preset, "--seed", 4, "--threads", 1)
    assert status == 0, err
    return path


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
def test_killed_imp_goes_on_and_ends_with_the_same_tickets(run, preset, tmp_path, kill):
    path = tmp_path / "killed"
    arguments = ("imp", path, "--preset", preset, "--seed", 4, "--threads", 1, "--quiet")
    process = start(*arguments)
    deadline = time.monotonic() + 120
    while not list((path / "tickets").glob("round-00-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(kill)
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


def test_second_process_is_refused(preset, tmp_path):
    path = tmp_path / "busy"
    process = start("imp", path, "--preset", preset, "--threads", 1, "--quiet")
    deadline = time.monotonic() + 120
    while not (path / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert "in use by another process" in error("imp", path, "--preset", preset)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


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


def test_errors_are_one_line_and_lose_nothing(run, preset, tmp_path):
    before = Tickets.load(run)
    for arguments, message in (
        (("imp", run, "--preset", preset, "--seed", 5), "seed is 4, not 5"),
        (("imp", run, "--preset", "digits", "--seed", 4), "another preset"),
        (("pool", run, "--target", 9), "target is round 9"),
        (("pool", run, "--seed", 1), "seed 4, not 1"),
        (("pool", tmp_path / "nothing"), "not a run directory"),
        (("imp", tmp_path / "x", "--preset", "nonsense"), "nonsense"),
        (("report", tmp_path), "results.json does not exist"),
    ):
        assert message in error(*arguments)
    assert same(Tickets.load(run), before)


ODD = "a[bold]b[/] :smile: [/]"  # markup and an emoji, to a library that prints them


def test_nothing_that_a_user_says_is_markup(run, preset, tmp_path, monkeypatch):
    path = tmp_path / ODD
    shutil.copytree(run, path)
    assert str(path) in lpk("report", path)
    assert f"wrote {tmp_path / ODD}" in lpk("export", run, tmp_path / ODD / "net", "--target", 1, "--method", "ticket")
    (tmp_path / "odd.toml").write_text("[dat]\n" + TINY_PRESET)
    assert "unknown section [dat]" in error("imp", tmp_path / "x", "--preset", tmp_path / "odd.toml")
    assert f"{ODD} is not a run directory" in error("eval", tmp_path / ODD / ODD)
    assert r"new\nline\x1b" in error("eval", tmp_path / "new\nline\x1b[31m")
    assert r"\udcff" in error("eval", tmp_path / os.fsdecode(b"\xff"))
    monkeypatch.setenv("COLUMNS", "300")
    with redirect_stderr(io.StringIO()) as shown, progress.Progress(ODD, 2) as bar:
        bar.note(f"coefficients {ODD}")
    assert shown.getvalue().count(ODD) == 2


def test_wrong_arguments_are_one_line():
    for arguments, message in (
        (("imp",), "Missing argument 'RUN'"),
        (("imp", "run", "--seed", "x"), "'--seed'"),
        (("pool", "run", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
        (("eval", ""), "`.` is the present directory"),
    ):
        status, _, err = here(*arguments)
        assert status == 2 and len(err.strip().splitlines()) == 1 and err.startswith("lpk: ") and message in err, err


def test_an_interrupt_says_in_one_line_what_is_kept(run, preset, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for place, arguments, message in (
        (
            "lpk.run.imp",
            ("imp", tmp_path / "new", "--preset", preset),
            "0 of 4 tickets and the finished epochs are kept; `{}` goes on from there",
        ),
        ("lpk.run.imp", ("imp", run, "--preset", preset, "--seed", 4), "4 of 4 tickets and the finished epochs"),
        ("lpk.run.imp", ("demo", run, "--preset", preset, "--seed", 4), "4 of 4 tickets and the finished epochs"),
        ("lpk.experiments.demo.pool", ("pool", run), "what was there before is kept; `{}` begins this search again"),
        ("lpk.reporting.results.evaluate", ("eval", run), "what was there before is kept; `{}` begins again"),
        (
            "lpk.run.imp",
            ("run", "prune", "--preset", preset, "--seeds", 1, "--out", tmp_path / "study"),
            "0 of 12 parts and the finished tickets and epochs are kept; `{}` goes on from there",
        ),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupted)
            status, _, err = here(*arguments, "--quiet")
        message = message.replace("{}", shlex.join(["lpk", *map(str, arguments), "--quiet"]))
        assert status == 130 and len(err.strip().splitlines()) == 1 and f"interrupted; {message}" in err, err


@pytest.mark.parametrize("words", ["imp OUT", "run prune --seeds 1 --out OUT"])
def test_an_interrupt_is_one_even_where_a_file_is_damaged(words, preset, tmp_path, monkeypatch):
    def damaged(*_, store, **__):
        store.mkdir()
        (store / "tickets.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr("lpk.run.imp", damaged)
    status, _, err = here(*words.replace("OUT", str(tmp_path)).split(), "--preset", preset, "--quiet")
    assert status == 130 and len(err.strip().splitlines()) == 1 and err.startswith("interrupted; "), err


def test_what_is_missing_is_named_with_the_command_that_makes_it(run, preset, tmp_path):
    path = tmp_path / "run"
    with Run.create(path, presets.load(preset), seed=4):
        pass
    for command in (
        ("eval", path),
        ("pool", path),
        ("export", path, tmp_path / "x", "--target", 1, "--method", "ticket"),
    ):
        assert re.search(r"tickets has no .*; `.*` makes them", error(*command)), command
    shutil.copytree(run / "tickets", path / "tickets")
    for half in ("pooled/interpolation", "pooled/.trash"):  # as `lpk pool` is killed before its first file
        (path / half).mkdir(parents=True)
    (path / "pooled" / "notes.txt").touch()
    lpk("eval", path, "--threads", 1, "--quiet")
    lpk("report", path)
    results = json.loads((path / "results.json").read_text())
    assert results["methods"] == [] and len(results["rows"]) == 4
    assert "`lpk pool" in error("export", path, tmp_path / "x", "--target", 1)


def test_paths_are_expanded(run, preset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(run, tmp_path / "run")
    lpk("report", "~/run")
    lpk("export", "~/run", "~/net", "--target", 1)
    assert (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("imp", "run", "--preset", "cifar10-resnet"), "cifar10-resnet18"),
        (("imp", "run", "--preset", "Fashion_MNIST"), "fashion-mnist"),
        (("imp", "run", "--autocast", "bf16"), "bfloat16"),
        (("run", "comparisn"), "comparison"),
        (("export", "run", "out", "--target", 1, "--method", "emma"), "ema"),
        (("export", "run", "out", "--target", 1, "--format", "ONNX"), "onnx"),
        (("poool", "run"), "pool"),
        (("pool", "run", "--quite"), "--quiet"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(arguments, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = here(*arguments)
    assert status in (1, 2) and len(err.strip().splitlines()) == 1 and f". Did you mean '{meant}'?" in err
    assert not list(tmp_path.iterdir())


def test_names_in_a_preset_that_are_nearly_right_are_suggested(tmp_path):
    for ours, theirs, meant in (
        ("[train]", "[trian]", "train"),
        ("momentum", "momentun", "momentum"),
        ('"small-resnet"', '"smallresnet"', "small-resnet"),
        ('"digits"', '"digit"', "digits"),
    ):
        (tmp_path / "own.toml").write_text(TINY_PRESET.replace(ours, theirs))
        assert f". Did you mean '{meant}'?" in error("imp", tmp_path / "run", "--preset", tmp_path / "own.toml")


@pytest.mark.parametrize("width", [50, 80])
def test_help_shows_flags_as_flags_and_names_whole(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ((), ("imp",), ("run",), ("export",), ("import",), ("pool",)):
        _, text, _ = here(*command, "--help")
        assert "--help" in text and "bool" not in text and "int range" not in text
        if command:  # of these, --install-completion is too long at 50
            assert not re.search(r"\S…", text), text
    _, text, _ = here("imp", "--help")
    assert all(name in text for name in presets.names())
    assert re.search(r"--preset +NAME", text) and re.search(r"--quiet +No progress", text)
    assert re.search(r"--seed +N +Of", text)


def test_the_shell_completes_commands_options_and_values():
    for words, found in (
        (["p"], ["pool"]),
        (["imp", "run", "--preset", "cifar100"], ["cifar100-resnet18", "cifar100-vgg16"]),
        (["imp", "run", "--autocast", "b"], ["bfloat16"]),
        (["pool", "run", "--method", "e"], ["ema", "ema-newcomer"]),
        (["pool", "run", "--search", ""], ["bounded", "exhaustive", "racing"]),
        (["export", "run", "out", "--fo"], ["--format", "--force"]),
        (["run", "co"], ["comparison", "coefficients", "conditions"]),
    ):
        asked = {"_LPK_COMPLETE": "complete_bash", "COMP_WORDS": shlex.join(["lpk", *words]).replace("''", "")}
        with mock.patch.dict(os.environ, asked | {"COMP_CWORD": str(len(words))}):
            status, out, _ = here()
        assert status == 0 and out.split() == found
    assert {*EXPERIMENTS} == {"all", *experiments.EXPERIMENTS}
    assert "--install-completion" in here("--help")[1]


def test_the_command_is_named_as_it_was_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/lpk", "imp", "a run"])
    assert terminal.command() == "lpk imp 'a run'"
    monkeypatch.setattr("sys.argv", ["/somewhere/lpk/__main__.py", "backends"])
    assert terminal.command() == "python -m lpk backends"


def test_help_and_version():
    status, text, _ = in_a_process("--version")
    assert status == 0 and text.startswith("lpk ") and ", torch " in text
    assert "cpu: " in lpk("backends")
    _, text, _ = here("--help")
    for command in ("demo", "imp", "import", "pool", "export", "eval", "report", "run", "backends"):
        status, about, _ = here(command, "--help")
        assert command in text and status == 0 and ("RUN" in about or "NAME" in about or command == "backends")


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
