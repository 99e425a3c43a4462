"""What bench.zoo finds of a network, keeps and shows. Nothing is timed here but in passing."""

import json
import sys

import pytest
import torch
from torchvision import models as classifiers

import bench.table
from bench import networks, zoo, zoo_networks, zoo_table
from bench.sparse_subjects import Subject
from lpk.sparse import NotSupported
from tests.bench.command import MACHINE, command

WHOLE = {"how": {"steps": 20, "in_pytorch": 0}, "difference": 2e-6, "ratio": 3.0}
PART = {"how": {"steps": 20, "in_pytorch": 7}, "difference": 3e-6, "ratio": 0.5}
IN_PYTORCH = {"how": {}, "difference": 0.0, "ratio": 0.99}


def row(name, *found, **more):
    batches = {str(batch): of for batch, of in zip([1, 16], found, strict=False)}
    return {
        "network": name,
        "density": 0.1,
        "asked": [1, 16],
        "date": "2026-01-02",
        "shape": [3, 224, 224],
        "batches": batches,
    } | more


ROWS = [
    row("torchvision/whole", WHOLE, WHOLE | {"ratio": 4.0}),
    row("torchvision/part", WHOLE, PART),
    row("torchvision/sent", IN_PYTORCH, IN_PYTORCH | {"ratio": 0.9}),
    row("timm/refused", *2 * [{"refused": 'it reads the time; with fallback="torch", it ends well'}]),
    row("timm/crashed", WHOLE, failed="ended by SIGSEGV"),
    row("timm/inexact", WHOLE | {"difference": 3e-4, "float64": [2e-4, 2.5e-4]}, WHOLE),
    row("timm/wrong", WHOLE, WHOLE | {"difference": 3e-4, "float64": [3e-4, 1e-5]}),
    row("timm/nan", WHOLE, WHOLE | {"difference": float("nan"), "float64": [float("nan"), 1e-5]}),
    row("timm/unmade", unmade="RuntimeError: dead"),
]
MEASURED = {"benchmark": "zoo", "machine": MACHINE, "rows": ROWS}


# --- which networks ---


def test_networks_are_there_each_once():
    torchvisions = [f"torchvision/{name}" for name in classifiers.list_models(module=classifiers)]
    left = zoo_networks.names("torchvision")
    assert len(left) == len(torchvisions) - len(zoo_networks.TOO_LARGE) and set(left) < set(torchvisions)
    timms = zoo_networks.names("timm")
    assert len(timms) == len(set(timms)) == 60
    pytest.importorskip("timm")
    assert [networks.full_name(name) for name in timms] == timms


# --- what is found of one ---


@pytest.fixture
def tiny(monkeypatch):
    """A network that takes the place of all; the largest of its outputs is 1."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    inputs = torch.ones(2, 3, 4, 4)
    with torch.no_grad():
        model[0].bias.fill_(0.5)
        model[0].weight.fill_(0.5 / 27)
    subject = Subject({"name": "tiny", "shape": (3, 4, 4)}, "uniform", 0.1, model.eval().requires_grad_(False), inputs)
    monkeypatch.setattr(zoo.networks, "described", lambda name, size: {})
    monkeypatch.setattr(zoo, "uniform", lambda network, density: subject)
    monkeypatch.setattr(zoo, "TURNS", (2, 2))
    monkeypatch.setattr(zoo, "WARM", 0.0)
    return model


def last(name="tiny"):
    *_, found = zoo.measured(name, 0.1, [1, 3])
    return found


def test_network_that_runs_whole_is_right_and_timed(tiny):
    found = last()
    assert found["shape"] == [3, 4, 4] and list(found["batches"]) == ["1", "3"]
    for batch in found["batches"].values():
        assert batch["how"]["in_pytorch"] == 0 and batch["how"]["steps"] > 0
        assert batch["difference"] < 1e-6 and "float64" not in batch and batch["turns"] == 2
        times = batch["milliseconds"]
        assert batch["ratio"] == pytest.approx(times["eager"] / times["lpk"], rel=1e-3)
    assert zoo_table.way(found) == "whole"


def test_steps_in_pytorch_are_counted(tiny):
    tiny[1] = torch.nn.Softmax(dim=1)
    assert {batch["how"]["in_pytorch"] for batch in last()["batches"].values()} == {1}
    assert zoo_table.way_in_words(last()) == "1 of 3 steps in PyTorch"


def test_outputs_are_held_against_float64_where_they_differ(tiny, monkeypatch):
    monkeypatch.setattr(zoo.lpk, "sparsify", lambda model: lambda x: model(x) + 1e-3)
    monkeypatch.setattr(zoo, "how", lambda fast: {"steps": 1, "in_pytorch": 0})
    found = last()["batches"]["1"]
    assert found["difference"] == pytest.approx(1e-3, rel=1e-2)
    own, eager = found["float64"]
    assert own == pytest.approx(1e-3, rel=1e-2) and eager < 1e-6
    assert zoo_table.wrong(found)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NotSupported("no (/a/site-packages/b.py:1)\nat all"), "refused", "no (b.py:1)"),
        (KeyError("x"), "error", "KeyError: 'x'"),
    ],
)
def test_errors_are_told_whether_sparsify_or_a_call_raises_them(tiny, monkeypatch, error, kind, words):
    def raises(*_):
        raise error

    for sparsify in (raises, lambda model: raises):
        monkeypatch.setattr(zoo.lpk, "sparsify", sparsify)
        assert last()["batches"] == {"1": {kind: words}, "3": {kind: words}}
    monkeypatch.setattr(zoo, "uniform", raises)
    assert last()["batches"] == {} and words in last()["unmade"]


def test_crashes_and_hangs_are_rows(tmp_path, monkeypatch):
    python, told = tmp_path / "python", json.dumps(row("timm/x", WHOLE))
    monkeypatch.setattr(zoo.sys, "executable", str(python))

    def of(ending, limit=60):
        python.write_text(f"#!/bin/sh\necho other words\necho '{told}'\n{ending}\n")
        python.chmod(0o755)
        return zoo.apart("timm/x", 0.1, [1, 16], limit)

    assert of("exit 0") == json.loads(told)
    assert of("kill -SEGV $$") == json.loads(told) | {"failed": "ended by SIGSEGV"}
    assert of("exec sleep 60", limit=0.5)["failed"] == "not done after 0 s"
    assert of("echo first >&2; echo MemoryError >&2; exit 1")["failed"] == "MemoryError"
    told = "nothing"
    found = of("exit 3")
    assert found["failed"] == "status 3" and found["network"] == "timm/x" and found["batches"] == {}
    assert zoo_table.way(found) == "error" and "status 3" in zoo_table.line(found)


# --- what is kept and shown ---


def test_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    asked = []

    def apart(name, density, batches, limit):
        asked.append((name, density))
        return row(name, WHOLE, WHOLE, density=density, asked=batches) | {"date": f"2026-01-{len(asked):02}"}

    monkeypatch.setattr(zoo, "apart", apart)
    monkeypatch.setattr(zoo.zoo_networks, "names", lambda library: [f"{library}/a", f"{library}/b"])
    command(zoo, monkeypatch, "--networks", "resnet50", "--results", tmp_path)
    command(zoo, monkeypatch, "--networks", "resnet50", "resnet34", "--results", tmp_path)
    command(zoo, monkeypatch, "--networks", "resnet50", "--results", tmp_path, "--batches", "16")
    assert asked == [("torchvision/resnet50", 0.1), ("torchvision/resnet34", 0.1)]
    command(zoo, monkeypatch, "--networks", "resnet50", "--results", tmp_path, "--again")
    command(zoo, monkeypatch, "--networks", "resnet50", "--results", tmp_path, "--density", "0.2")
    command(zoo, monkeypatch, "--library", "timm", "--results", tmp_path)
    assert asked[2:] == [("torchvision/resnet50", 0.1), ("torchvision/resnet50", 0.2), ("timm/a", 0.1), ("timm/b", 0.1)]
    command(zoo, monkeypatch, "--networks", "timm/vgg16_bn", "--results", tmp_path)
    command(zoo, monkeypatch, "--networks", "timm/vgg16_bn", "--results", tmp_path, "--batches", "1", "2")
    assert asked[6:] == 2 * [("timm/vgg16_bn", 0.1)]
    (path,) = tmp_path.glob("zoo-*threads.jsonl")
    found = zoo.read(path)
    dates = {(of["network"], of["density"]): of["date"][-2:] for of in found["rows"]}
    assert dates == dict(zip(asked, ["03", "02", "03", "04", "05", "06", "08", "08"], strict=True))
    assert len(path.read_text().splitlines()) == 1 + len(found["rows"])


@pytest.mark.parametrize("arguments", [["--density", "0"], ["--batches", "0"], ["--networks", "resnet9000"]])
def test_what_cannot_be_measured_is_an_error(monkeypatch, arguments):
    with pytest.raises(SystemExit):
        command(zoo, monkeypatch, *arguments)


def test_table_counts_what_is_whole_wrong_failed_and_slow():
    parts = zoo_table.table(MEASURED).split("\n\n")
    timm, torchvision, table = parts
    assert timm.startswith("timm: of 5 networks 3 run whole on lpk, 0 in part, 0 in PyTorch; 1 are refused. 2 wrong, ")
    assert "2 wrong, 1 unclear errors." in timm and timm.endswith("Not compared: timm/unmade.")
    assert torchvision.startswith("torchvision: of 3 networks 1 run whole on lpk, 1 in part, 1 in PyTorch; 0 are ref")
    assert "Batch 1: 0 of 3 slower than 0.95" in torchvision and "Left out, more than 20 G" in torchvision
    slow = "Batch 16: 2 of 3 slower than 0.95 of PyTorch's speed, the slowest 0.500 (torchvision/part), the median 0.9"
    assert slow in torchvision
    lines = table.splitlines()
    assert len(lines) == 2 + len(ROWS) - 1
    assert lines[3] == "| torchvision/part | 224×224 | 7 of 20 steps in PyTorch | 3e-06 | 3.00 | 0.500 |"
    assert lines[5] == "| timm/refused | 224×224 | refused: it reads the time |  |  |  |"
    assert lines[6] == "| timm/crashed | 224×224 | error: ended by SIGSEGV | 2e-06 | 3.00 |  |"
    assert "| 3e-04, to float64 2e-04, PyTorch's 3e-04 |" in lines[7]
    assert "| 3e-04, to float64 3e-04, PyTorch's 1e-05, wrong |" in lines[8] and "wrong" in lines[9]


def test_update_fills_the_markers(tmp_path, monkeypatch, capsys):
    zoo.write(tmp_path / "zoo.jsonl", MEASURED | {"rows": ROWS[:-2]})
    page = tmp_path / "page.md"
    page.write_text("<!-- bench: zoo -->\nold\n<!-- /bench: zoo -->\nafter\n")
    command(bench.table, monkeypatch, tmp_path / "zoo.jsonl", "--update", page)
    text = page.read_text()
    assert "old" not in text and text.endswith("after\n") and "| torchvision/whole |" in text
    assert "Measured by `python -m bench.zoo` on Imagined 9000, avx2, 4 threads" in text and "2026-01-02" in text


def test_a_process_prints_its_row(tiny, monkeypatch, capsys):
    monkeypatch.setattr(zoo.resource, "setrlimit", lambda *_: None)
    command(zoo, monkeypatch, "--here", "tiny", "--batches", "1", "3")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first["batches"]) == ["1"] and list(second["batches"]) == ["1", "3"]
    assert sys.modules["bench.zoo"] is zoo
