"""What becomes of measured benchmarks: rows, a results file, the README's table and the plot. Nothing is timed here."""

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch

import bench.plot
import bench.table
from bench import conftest, results, test_interpolate_prune
from bench.cases import LARGE, RESNET18, cases, dtype_name
from lpk import _core, ops
from lpk.tickets import files
from tests.bench.command import MACHINE, command

ROOT = Path(__file__).parents[2]
OPERATIONS = tuple(bench.plot.OPERATIONS)
MARKERS = "<!-- bench -->\n{}<!-- /bench -->"


def run(peer, median, *, moved=1, answered=1, **question):
    """What pytest-benchmark hands over."""
    asked = dict.fromkeys(results.QUESTION) | {"n": 1000} | question
    stats = SimpleNamespace(median=median, iqr=median / 10, rounds=9)
    return SimpleNamespace(stats=stats, extra_info=asked | {"peer": peer, "moved": moved, "answered": answered})


def row(peer, milliseconds, **question):
    main = {
        "operation": "interpolate_prune",
        "peer": peer,
        "device": "cpu",
        "n": RESNET18,
        "dtype": "float32",
        "density": 0.2,
        "coefficients": 11,
        "distribution": "normal",
        "threads": 4,
        "milliseconds": milliseconds,
        "to_lpk": milliseconds / 2,
        "to_floor": milliseconds / 1.6,
    }
    return main | question


def result(*rows, **machine):
    return {"machine": MACHINE | machine, "date": "2026-01-02", "rows": list(rows)}


MASKS = {"operation": "magnitude_mask", "coefficients": 1}
MEASURED = result(
    row("torch.topk", 340.0),
    row("lpk", 2.0),
    row("numpy.partition", 60.0),
    row("copy", 1.6),
    row("lpk", 2.0, **MASKS),
    row("global_unstructured", 1234.0, **MASKS),
    row("lpk", 77.7, dtype="float16"),
    row("lpk", 55.5, threads=1),
    row("lpk", 0.25, n=2**16),
    row("torch.topk", 4.0, n=2**16),
)


# --- results ---


def test_times_are_per_coefficient_and_compared_within_a_question():
    rows = results.rows_of(
        [
            run("lpk", 0.022, moved=600, answered=11),
            run("torch.topk", 0.03, moved=600),
            run("copy", 0.001, moved=400),
            run("lpk", 0.5, n=2000),
            SimpleNamespace(stats=None, extra_info={"peer": "skipped"}),
        ]
    )
    told = [(r["peer"], r["n"], r["milliseconds"], r["iqr"], r["to_lpk"], r["to_floor"]) for r in rows]
    assert told == [
        ("lpk", 1000, 2.0, 0.2, 1.0, 1.333),  # the floor moves 600 bytes at the copy's speed: 1.5 ms
        ("torch.topk", 1000, 30.0, 3.0, 15.0, 20.0),
        ("copy", 1000, 1.0, 0.1, 0.5, 1.0),
        ("lpk", 2000, 500.0, 50.0, 1.0, None),
    ]


def test_results_file_has_the_rows_one_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "machine", lambda: MACHINE)
    path = results.write(tmp_path, MEASURED["rows"])
    assert path == tmp_path / "imagined-9000-avx2-4threads.json"
    written = files.read_json(path)
    assert written["machine"] == MACHINE
    assert written["rows"] == MEASURED["rows"]
    lines = [line for line in path.read_text().splitlines() if '"peer"' in line]
    assert [json.loads(line.rstrip(",")) for line in lines] == MEASURED["rows"]


def test_a_machine_with_a_gpu_is_named_after_it():
    assert results.slug(MACHINE | {"gpu": "NVIDIA Imagined-80GB"}) == "nvidia-imagined-80gb"


# --- the table ---


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "measured.json"
    files.write_json(path, MEASURED)
    return path


def test_table_shows_the_main_case_the_fastest_first(source, monkeypatch, capsys):
    command(bench.table, monkeypatch, source)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("|")][2:] == [
        "| lpk | 2.00 | 1 |",
        "| NumPy, `numpy.partition` | 60.0 | 30.0 |",
        "| PyTorch, `abs` and `torch.topk` | 340 | 170 |",
        "| the limit: a plain copy of the bytes that must move | 1.60 | 0.800 |",
    ]
    assert "617 times as fast (2.00 ms against 1,230 ms)" in printed
    assert "Imagined 9000, avx2, 4 threads, PyTorch 2.0, lpk 0.1.0, 2026-01-02" in printed


def test_table_of_a_gpu_shows_the_large_vectors():
    own = row("lpk", 3.0, device="cuda", n=LARGE, threads=None)
    text = bench.table.table(result(own, gpu="NVIDIA Imagined"), "cuda")
    assert "2^26 float32 weights" in text and "| lpk | 3.00 | 1 |" in text and "NVIDIA Imagined" in text
    assert bench.table.table(result(own), "cpu") is None


def test_update_replaces_what_stands_between_the_markers(source, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + MARKERS.format("old\n") + "\nafter\n")
    for _ in range(2):  # the second time changes nothing
        command(bench.table, monkeypatch, source, "--update", readme)
        table = bench.table.table(MEASURED, "cpu")
        assert readme.read_text() == "before\n" + MARKERS.format(f"\n{table}\n") + "\nafter\n"


@pytest.mark.parametrize("text", ["no markers\n", "<!-- bench -->\nhalf\n", 2 * MARKERS.format("old\n")])
def test_update_refuses_a_file_without_one_pair_of_markers(source, tmp_path, monkeypatch, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(SystemExit, match="one is needed"):
        command(bench.table, monkeypatch, source, "--update", readme)
    assert readme.read_text() == text


def test_table_refuses_results_without_the_main_case(tmp_path, monkeypatch):
    files.write_json(tmp_path / "other.json", result(row("lpk", 1.0, n=2**16)))
    with pytest.raises(SystemExit, match="not measured"):
        command(bench.table, monkeypatch, tmp_path / "other.json")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.012345, "0.0123"), (1.0, "1.00"), (99.96, "100"), (123.4, "123"), (1234.5, "1,230"), (99.94, "99.9")],
)
def test_three_digits(number, text):
    assert results.three(number) == text


# --- the plot ---


def test_sweep_has_the_sizes_of_the_main_case_and_all_threads():
    swept = bench.plot.sweep(MEASURED["rows"], "interpolate_prune", "cpu")
    assert [r["n"] for r in swept] == sorted(r["n"] for r in swept)
    assert {(r["peer"], r["n"]) for r in swept} == {
        ("lpk", 2**16),
        ("torch.topk", 2**16),
        *((peer, RESNET18) for peer in ("lpk", "torch.topk", "numpy.partition", "copy")),
    }
    assert all(r["dtype"] == "float32" and r["threads"] == 4 for r in swept)


def test_plot_names_what_it_shows_and_is_the_same_each_time(source, tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    for folder in ("first", "second"):
        command(bench.plot, monkeypatch, source, "--out", tmp_path / folder)
    path = tmp_path / "first" / "measured-cpu.svg"
    texts = [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]
    panels = {bench.plot.OPERATIONS["interpolate_prune"], bench.plot.OPERATIONS["magnitude_mask"]}
    assert panels | {"lpk", "torch.topk", "numpy.partition", "copy floor", "64 Ki"} <= set(texts)
    assert bench.plot.OPERATIONS["interpolate"] not in texts  # not measured
    assert any("Imagined 9000" in text for text in texts if text)
    assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_plot_draws_the_kernels_of_the_committed_results(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    command(bench.plot, monkeypatch, "--out", tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn and not any(name.startswith(("search-", "sparse-")) for name in drawn)


def test_committed_results_of_a_gpu_print_as_its_table():
    path = ROOT / "bench" / "results" / "nvidia-h100-80gb-hbm3.json"
    assert path.stem == results.slug(files.read_json(path)["machine"])
    marker, (text,) = bench.table.tables_of(files.read_json(path))
    assert marker == "bench" and "NVIDIA H100" in text and "| CuPy, `cupy.partition` |" in text


# --- what the benchmarks, the table and the plot must agree on ---


@pytest.mark.parametrize("compiled", [False, True])
def test_triton_is_timed_beside_cuda(compiled, monkeypatch):
    """Where the CUDA kernels are missing, `lpk` is Triton already."""
    pytest.importorskip("triton")
    monkeypatch.setattr(_core, "cuda_compiled", compiled)
    both = ("lpk", "lpk.triton")
    assert tuple(cases("interpolate_prune", "short", "cuda")[0].contestants(both)) == (both if compiled else ("lpk",))
    assert tuple(cases("interpolate_prune", "short", "cpu")[0].contestants(both)) == ("lpk",)
    with conftest.backend("lpk.triton"):
        assert not _core.cuda_compiled
    assert _core.cuda_compiled == compiled


def test_one_coefficient_is_the_call_for_one(monkeypatch):
    """Not the one for all coefficients, with a single one."""
    asked = []
    monkeypatch.setattr(ops, "interpolate_prune", lambda *inputs, out: asked.append((inputs, out)))
    a, b = torch.ones(5), torch.ones(5)
    test_interpolate_prune.call_of("lpk", a, b, [0.3], 2)()
    ((inputs, out),) = asked
    assert inputs == (a, b, 0.3, 2) and out.shape == a.shape


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_contestant_has_a_colour_and_a_name(operation):
    peers = set(importlib.import_module(f"bench.test_{operation}").CONTESTANTS) - {"lpk", "copy"}
    assert peers <= bench.plot.PEERS.keys()
    if operation == "interpolate_prune":
        assert peers <= bench.table.NAMES.keys()


@pytest.mark.parametrize("sizes", ["short", "full"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("operation", "coefficients"), [("interpolate_prune", 11), ("magnitude_mask", 1)])
def test_the_case_that_the_table_shows_is_measured(sizes, device, operation, coefficients):
    rows = [
        row(
            "lpk",
            1.0,
            operation=operation,
            device=case.device,
            n=case.n,
            dtype=dtype_name(case.dtype),
            density=case.density,
            coefficients=case.coefficients,
            distribution=case.distribution,
            threads=(case.threads or MACHINE["threads"]) if device == "cpu" else None,
        )
        for case in cases(operation, sizes, device)
    ]
    assert "lpk" in bench.table.main_case(result(*rows), operation, device, coefficients)


def test_benchmarks_collect():
    collect = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "--sizes", "full"]
    collected = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout + collected.stderr
    ids = collected.stdout.splitlines()
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("bench/test_*.py")}
    assert modules == {name.partition("::")[0] for name in ids if "::" in name}
    for operation in OPERATIONS:
        main = f"bench/test_{operation}.py::test_{operation}[cpu n={RESNET18} float32 0.2 normal "
        ends = {name.rpartition(" ")[2] for name in ids if name.startswith(main)}
        assert {"lpk]", "copy]"} < ends


@pytest.mark.parametrize(
    ("python", "wanted", "told"),
    [
        ("true", ["operators"], "all passed"),
        ("false", ["operators"], "failed: build"),
        ("true", ["tests"], "all passed"),
        ("true", ["search"], "all passed"),
        ("true", ["kernels"], "all passed"),
        ("true", [], "all passed"),
    ],
)
def test_the_gpu_script_does_what_is_asked(python, wanted, told):
    """With commands that do nothing in Python's place."""
    run = subprocess.run(
        ["bash", "bench/gpu.sh", *wanted], cwd=ROOT, env=os.environ | {"PYTHON": python}, capture_output=True, text=True
    )
    assert told in run.stdout and run.returncode == (python == "false")
    steps = {line.split()[1] for line in run.stdout.splitlines() if line.startswith("---") and ":" not in line}
    sanitizer = {"compute-sanitizer", "memcheck", "racecheck"}  # where it is installed
    asked = {"build", "what", *(wanted or ["tests", "operators", "benchmarks"])}
    assert steps - sanitizer == asked | ({"bars", "phases"} if asked & {"benchmarks", "kernels"} else set())
