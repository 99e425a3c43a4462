"""What bench.search measures, keeps and shows, on four tickets of a tiny network. No time is looked at."""

import dataclasses
import os
import shutil
import subprocess

import matplotlib
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bench.plot
import bench.table
import lpk
from bench import results, search, search_gpu, search_gpu_words, search_reference
from bench.results_file import ResultsFile
from bench.search_reference import Batches, StateDicts
from lpk import presets
from lpk.run import Run
from lpk.tickets import files
from tests.bench.command import MACHINE, command
from tests.conftest import TINY_PRESET
from tests.pooling import reference_search

RESULTS = search.PRESET.parent / "results"


@pytest.fixture(scope="module", autouse=True)
def threads():
    """The network is so small that two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with a preset's file and, under runs/, its run."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("search")
    (folder / "tiny.toml").write_text(TINY_PRESET)
    with Run.create(folder / "runs" / "tiny-0", presets.load(folder / "tiny.toml"), seed=0, device="cpu") as run:
        run.imp(progress=False)
    return folder


@pytest.fixture
def contest(made):
    with Run.open(made / "runs" / "tiny-0", device="cpu") as run:
        yield search_gpu.Contest(run, candidates=1, backend="torch")


def asked(made, *arguments):
    given = ["--preset", made / "tiny.toml", "--runs", made / "runs", *arguments]
    return search.arguments().parse_args(list(map(str, given)))


# --- what is asked for ---


def test_the_preset_of_the_gpu_has_the_tickets_that_were_measured_there():
    preset = presets.load(RESULTS.parent / "h100.toml")
    assert (preset.model.name, preset.data.name, preset.data.validation) == ("resnet18", "fashion-mnist", 6000)
    assert preset.imp.rounds + 1 == 8 and preset.pool.calibration == 2000
    assert (1 - preset.imp.fraction) ** 3 == pytest.approx(0.216)
    epochs = preset.train.epochs + preset.imp.rounds * (preset.train.epochs - preset.imp.rewind)
    assert epochs == 17


@pytest.mark.parametrize(
    ("device", "arguments", "problem"),
    [
        ("cpu", ["--parts", "rows", "profile"], "profile"),
        ("cpu", ["--autocast", "bfloat16"], "GPU"),
        ("meta", ["--parts", "peak_memory"], "peak_memory"),
        ("meta", ["--keep-reference"], "CPU"),
        ("meta", ["--reference-networks", "12"], "0 to 11"),
        ("cpu", ["--parts", "rows", "peak_memory", "--keep-reference"], None),
        ("meta", ["--parts", "rows", "profile", "--autocast", "bfloat16", "--reference-networks", "0"], None),
    ],
)
def test_what_a_device_cannot_do_is_said(device, arguments, problem):
    said = search.misuse(search.arguments().parse_args(arguments), torch.device(device))
    assert said is None if problem is None else problem in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(search, monkeypatch, "--device", "cuda")
    assert "finds no GPU" in capsys.readouterr().err


def test_the_gpu_script_asks_for_what_there_is():
    """With a command that prints what it is given in Python's place."""
    told = subprocess.run(
        ["bash", "bench/gpu.sh", "search"],
        cwd=RESULTS.parents[1],
        env=os.environ | {"PYTHON": "echo", "SEARCH": "--rounds 4 --parts rows"},
        capture_output=True,
        text=True,
    ).stdout
    (asked_for,) = (line for line in told.splitlines() if line.startswith("-m bench.search "))
    given = search.arguments().parse_args(asked_for.split()[2:])
    assert (given.device, given.rounds, given.parts) == ("cuda", 4, ["rows"])
    assert RESULTS.parents[1] / given.results == RESULTS
    assert presets.load(RESULTS.parents[1] / given.preset).name == "h100"


# --- on a CPU ---


def test_rows_of_a_cpu_are_those_of_the_committed_results(made, tmp_path, monkeypatch, capsys):
    arguments = ("--preset", made / "tiny.toml", "--runs", made / "runs", "--seeds", 0, "--results", tmp_path)
    some = ("--device", "cpu", "--parts", "rows", "--targets", 3, "--candidates", 1)
    command(search, monkeypatch, *arguments, *some)
    (path,) = tmp_path.iterdir()
    written = files.read_json(path)
    (committed,) = (files.read_json(path) for path in RESULTS.glob("search-amd-*.json"))
    assert path.name.startswith("search-") and written.keys() == committed.keys()
    (row,) = written["rows"]
    assert row.keys() == committed["rows"][0].keys() and row["exhaustive"]["same_as_lpk"]
    assert row["reference"].keys() >= committed["rows"][0]["reference"].keys()
    marker, (text,) = bench.table.tables_of(written)
    assert marker == "bench: search" and "1 of 1 steps alike" in text


# --- on a GPU ---


@pytest.fixture(scope="module")
def measured(made, tmp_path_factory):
    """The file that all parts of a GPU's measurement write, here of a CPU."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ("--targets", 1, 3, "--candidates", 1, "--reference-networks", 2, "--results", folder)
    given = asked(made, *arguments)
    file = search.on_gpu(given, presets.load(given.preset), torch.device("cpu"))
    return files.read_json(file.path)


def test_rows_of_a_gpu_tell_lpk_beside_the_eager_pass(measured):
    assert measured["benchmark"] == "search-gpu" and measured["preset"]["name"] == "tiny"
    told = [(row["target"], row["dtype"]) for row in measured["rows"]]
    assert told == [(target, dtype) for target in (1, 3) for dtype in ("bfloat16", "float32")]
    for row in measured["rows"]:
        ours, eager = row["lpk"], row["eager"]
        assert ours["samples_per_second"] == pytest.approx(ours["forward_samples"] / ours["seconds"])
        assert ours["seconds"] == sorted(ours["repetitions"])[1] and len(ours["repetitions"]) == 3
        assert ours["search_seconds"] <= max(ours["repetitions"]) and ours["same_every_time"]
        assert eager["steps"] == 1 and eager["same_batch_sizes"] and "device" not in row
        assert ours["settings"]["autocast"] == (None if row["dtype"] == "float32" else "torch.bfloat16")


def test_all_targets_profile_and_references_are_kept(measured):
    assert [(row["dtype"], row["targets"]) for row in measured["all_targets"]] == [("bfloat16", 4), ("float32", 4)]
    assert [(row["target"], row["device"]) for row in measured["profile"]] == [(3, None), (3, None)]
    assert [row["target"] for row in measured["references"]] == [1, 3]
    found = measured["references"][0]
    for kind, samples in (("training_samples", 600), ("calibration_samples", 200)):
        assert found[kind]["calibration_samples"] == samples and found[kind]["extrapolated"]
        assert (found[kind]["networks"], found[kind]["measured"]) == (11, 2)


def test_results_of_a_gpu_become_tables_and_are_not_drawn(measured, tmp_path, monkeypatch, capsys):
    device = {"busy": 0.9, "wall": 1.0, "share": 0.9, "kernels": 1200, "kernel_launches": 30, "graph_launches": 40}
    device |= {"synchronizations": 50, "top": [["convolution", 7, 0.5]]}
    row = measured["profile"][0] | {"seconds": 0.95, "device": device}
    result = measured | {"profile": [row], "machine": MACHINE | {"gpu": "NVIDIA Imagined"}}
    marker, (text,) = bench.table.tables_of(result)
    page = (RESULTS.parents[1] / "docs" / "performance.md").read_text()
    assert marker == "bench: search on a GPU" and text in bench.table.updated(page, marker, [text])
    for part in (
        "| 0 | 3 |",
        "plain PyTorch, 600 calibration samples",
        "(extrapolated to 11 networks, 2 measured)",
        "All 4 targets".lower(),
        "busy 0.900 s of 1.000 s under the profiler, 90% (95% of the 0.950 s without it)",
        "30 launched one by one, 40 graphs",
        "`python -m bench.search --preset bench/tiny.toml` on NVIDIA Imagined",
    ):
        assert part in text, part
    assert "convolution" in search_gpu_words.line("profile", row)
    matplotlib.use("Agg")
    shutil.copytree(RESULTS, tmp_path / "results")
    files.write_json(tmp_path / "results" / "search-nvidia-imagined.json", result)
    files.write_json(tmp_path / "results" / "search-nvidia-empty.json", result | {"rows": []})
    monkeypatch.setattr(bench.plot, "HERE", tmp_path)
    command(bench.plot, monkeypatch, "--out", tmp_path / "drawn")
    assert not any(path.name.startswith("search-") for path in (tmp_path / "drawn").iterdir())


def test_rounds_make_fewer_tickets(made, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(search, "on_cpu", lambda given, preset, device: seen.update(preset=preset) or stopped())
    with pytest.raises(KeyboardInterrupt):
        command(search, monkeypatch, "--preset", made / "tiny.toml", "--rounds", 2, "--device", "cpu")
    assert seen["preset"].imp.rounds == 2 and seen["preset"].train.epochs == 3


def stopped():
    raise KeyboardInterrupt


# --- agreement ---


def test_agreement_tells_where_two_searches_differ(contest):
    made, _ = contest.pool(3, "float32")
    assert search_gpu.agreement(made, made) == {
        "steps": 1,
        "differing": [],
        "same_network": True,
        "largest_difference": 0.0,
        "same_batch_sizes": True,
        "same": True,
    }
    step = made.steps[0]
    other = dataclasses.replace(made, steps=(step._replace(coefficient=0.123),))
    (differing,) = search_gpu.agreement(made, other)["differing"]
    assert differing["candidate"] == step.candidate and differing["theirs"][0] == 0.123
    assert not search_gpu.agreement(made, other)["same"]
    ticket = dataclasses.replace(made, flat=contest.tickets[0].flat)
    found = search_gpu.agreement(made, ticket)
    assert not found["same_network"] and not found["same"] and found["largest_difference"] > 0
    assert "0 of 1 steps DIFFER, ANOTHER network, by up to" in search_gpu_words.said(found)
    sizes = dataclasses.replace(made, settings=made.settings | {"calibration_batch_size": 7})
    found = search_gpu.agreement(made, sizes)
    assert found["same_network"] and not found["same"]
    assert "not comparable" in search_gpu_words.said(found | {"batches": search_gpu.batches(sizes)})


def test_what_ran_is_told_as_far_as_it_is_known():
    chosen = {"backend": "graph", "batch_size": 512, "calibration_batch_size": 128}
    assert search_gpu_words.settings(chosen) == "backend graph, batches of 512 and 128"
    told = search_gpu_words.settings(chosen | {"backend": "torch", "graph_problem": "it branches", "tf32": True})
    assert told == "backend torch, not captured: it branches, batches of 512 and 128, TF32"


# --- the reference ---


def test_extrapolation_takes_what_is_not_a_network_once():
    assert search_reference.extrapolated(alone=2.0, beside=2.0 + 3 * 0.5, networks=3, in_all=77) == 2.0 + 77 * 0.5


@pytest.mark.parametrize(("networks", "calls"), [(2, [(1, 1), (0, 11), (1, 2)]), (0, [(1, 1), (None, 11)])])
def test_reference_measures_a_few_networks_for_all(contest, monkeypatch, networks, calls):
    """By a clock that goes on for 2 s for each search, and 3 s for each network of it."""
    seen, clock = [], [0.0]

    def pool(tickets, target, model, validation, calibration, coefficients, *, candidates):
        seen.append((candidates, len(coefficients)))
        offered = len(tickets) - 1 if candidates is None else candidates
        clock[0] += 2.0 + 3.0 * offered * len(coefficients)

    monkeypatch.setattr(reference_search, "pool", pool)
    monkeypatch.setattr(search_reference.time, "perf_counter", lambda: clock[0])
    samples = Batches(*contest.validation, 128)
    tickets = StateDicts(contest.tickets, torch.device("cpu"))
    found = search_reference.measure(tickets, 1, contest.model, samples, samples, candidates=None, networks=networks)
    assert seen == calls
    assert found["seconds"] == 2.0 + 3.0 * 33 and found["networks"] == 33
    assert (found["measured"], found["extrapolated"]) == ((2, True) if networks else (33, False))


def test_reference_on_the_device_finds_what_it_finds_of_loaders(contest):
    batches = Batches(*contest.validation, 64), Batches(*contest.calibration, 64)
    assert len(batches[0]) == len(list(batches[0])) == 4 and len(batches[0].first(2).inputs) == 128
    loaders = [DataLoader(TensorDataset(part.inputs, part.labels), batch_size=64) for part in batches]
    options = {"coefficients": lpk.COEFFICIENTS[:2], "candidates": 1}
    on_device = StateDicts(contest.tickets, torch.device("cpu"))
    ours = reference_search.pool(on_device, 3, contest.model, *batches, **options)
    theirs = reference_search.pool(contest.tickets, 3, contest.model, *loaders, **options)
    assert ours.steps == theirs.steps and ours.baseline == theirs.baseline
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict.values(), theirs.state_dict.values(), strict=True))


# --- the file ---


def test_rows_of_the_same_preset_stay_until_they_are_measured_again(tmp_path):
    path = tmp_path / "results" / "search.json"
    head = {"benchmark": "search-gpu", "preset": {"name": "a"}, "machine": MACHINE}
    file = ResultsFile(path, head, search_gpu.PARTS)
    for row in ({"seed": 0, "target": 3, "dtype": "float32"}, {"seed": 0, "target": 0, "dtype": "float32"}):
        file.keep("rows", row)
    file = ResultsFile(path, head, search_gpu.PARTS)
    file.keep("rows", {"seed": 0, "target": 3, "dtype": "float32", "again": True})
    file.keep("rows", {"seed": 0, "target": 3, "dtype": "bfloat16"})
    told = [(row["target"], row["dtype"], "again" in row) for row in files.read_json(path)["rows"]]
    assert told == [(0, "float32", False), (3, "bfloat16", False), (3, "float32", True)]
    assert ResultsFile(path, head | {"preset": {"name": "b"}}, search_gpu.PARTS).result["rows"] == []
    assert ResultsFile(path, {"preset": {"name": "a"}}, ["rows"]).result["rows"] == []


def test_a_gpu_machine_keeps_its_cpu_apart():
    here = MACHINE | {"gpu": "NVIDIA Imagined"}
    assert results.slug(here) == "nvidia-imagined" and results.slug(here | {"gpu": None}).endswith("4threads")
