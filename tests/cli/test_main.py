"""What the commands have in common: errors and interrupts are one line, and nothing is lost."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr

import pytest

from lpk import presets, progress, terminal
from lpk.run import Run
from lpk.tickets.tickets import Tickets
from tests.command import error, here, lpk
from tests.conftest import TINY_PRESET
from tests.same import same


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
        (
            "lpk.experiments.demo.pool",
            ("pool", run),
            "finished networks are kept, and what was there before; `{}` begins this search again",
        ),
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


def test_the_command_is_named_as_it_was_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/lpk", "imp", "a run"])
    assert terminal.command() == "lpk imp 'a run'"
    monkeypatch.setattr("sys.argv", ["/somewhere/lpk/__main__.py", "backends"])
    assert terminal.command() == "python -m lpk backends"


@pytest.mark.parametrize("older", [False, True])
def test_output_that_nobody_reads_is_no_error(older):
    """As of `lpk --help | head -1`. An older rich has no answer to it."""
    program = "import rich.console\nfrom lpk.__main__ import main\ndef older(console): raise\n"
    program += "rich.console.Console.on_broken_pipe = older\nmain()" if older else "main()"
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([sys.executable, "-c", program, "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")
