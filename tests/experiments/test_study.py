"""A study goes on where it stopped: by parts, each of its settings and its tickets."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest

from lpk import experiments, presets
from lpk.experiments.study import Part, Plan, Study
from lpk.run import Run
from tests.command import lpk, start
from tests.content import content
from tests.experiments.plain import SEEDS, modified


def test_a_second_call_trains_and_measures_nothing(done, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    before = {p: t for p, t in modified(done.out).items() if "parts" in p or "seed-" in p}
    monkeypatch.setattr(Run, "create", refuse)
    experiments.carry_out("averages", done)
    after = {p: t for p, t in modified(done.out).items() if "parts" in p or "seed-" in p}
    assert before == after


def test_only_what_is_missing_is_measured(done):
    parts = sorted((done.out / "disagreement" / "parts").iterdir())
    contents = [json.loads(path.read_text())["found"] for path in parts]
    parts[0].unlink()
    stamp = parts[1].stat().st_mtime_ns
    experiments.carry_out("disagreement", done)
    assert parts[1].stat().st_mtime_ns == stamp
    assert [json.loads(path.read_text())["found"] for path in parts] == contents


def test_a_part_belongs_to_its_settings_and_its_tickets(done):
    part = Part(0, {"target": 1, "pool": None}, 1)
    identity = "0123456789ab"
    keys = [
        done._key("comparison", part, identity),
        done._key("dense", part, identity),
        done._key("comparison", part, "ba9876543210"),
        done._key("comparison", Part(0, {"target": 2, "pool": None}, 1), identity),
        done._key("comparison", Part(1, {"target": 1, "pool": None}, 1), identity),
        done._key("comparison", Part(0, {"target": 1, "pool": None}, 1, rewind=False), identity),
    ]
    assert len({str(done._path("comparison", part, key)) for key in keys}) == len(keys)
    assert done._key("comparison", Part(0, {"target": 1, "pool": None}, 999), identity) == keys[0]


def test_other_presets_are_refused(done, tmp_path):
    other = Study(done.out, presets.load("digits"), SEEDS, progress=False)
    halved = replace(done.preset, train=replace(done.preset.train, autocast="bfloat16"))
    for each in (other, replace(done, preset=halved)):
        with pytest.raises(ValueError, match="seed-0 holds tickets of another preset"):
            experiments.carry_out("disagreement", each)
    assert done._key("dense", Part(0, {}, 1), "") != replace(done, preset=halved)._key("dense", Part(0, {}, 1), "")
    with pytest.raises(ValueError, match="at least one"):
        Study(tmp_path, replace(done.preset, imp=replace(done.preset.imp, rounds=0)), SEEDS)


def test_absent_corruptions_are_missed_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LPK_DATA", raising=False)
    study = Study(tmp_path / "study", presets.load("cifar10-vgg16"), [0], progress=False)
    with pytest.raises(FileNotFoundError, match="CIFAR-10-C is in none"):
        experiments.carry_out("robustness", study)
    assert not study.out.exists()


def test_a_damaged_part_is_named(done):
    path = next((done.out / "disagreement" / "parts").iterdir())
    content = path.read_text()
    try:
        for damage in ("{", "{}", content.replace('"seed": ', '"seed": 1')):
            path.write_text(damage)
            with pytest.raises(ValueError, match=path.name):
                experiments.carry_out("disagreement", done)
    finally:
        path.write_text(content)


def test_a_killed_experiment_goes_on_where_it_stopped(done, preset_file, tmp_path):
    arguments = ("run", "dense", "--preset", preset_file, "--seeds", 2, "--out", tmp_path, "--threads", 1, "--quiet")
    process = start(*arguments)
    parts = tmp_path / "dense" / "parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("seed-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = modified(parts)
    assert 0 < len([p for p in kept if "/." not in p]) < 6, "it had finished before it was killed"
    assert "dense: Points of test accuracy" in lpk(*arguments)
    now = modified(parts)
    assert all(now[path] == kept[path] for path in kept) and len([p for p in now if "/." not in p]) == 6
    found, expected = (json.loads((p / "dense" / "results.json").read_text())["records"] for p in (tmp_path, done.out))
    assert found == expected


def test_a_study_keeps_to_its_directory_and_leaves_a_users_files(preset_file, tmp_path):
    def measure(out):
        return Study(out, presets.load(preset_file), (0,)).measure(
            "dense", Plan([], measure=lambda: {}, show=lambda _: None)
        )

    measure(tmp_path / "study")
    (tmp_path / "outside").mkdir()
    (tmp_path / "study" / "dense" / "parts").rmdir()
    (tmp_path / "study" / "dense" / "parts").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="parts is a symbolic link"):
        measure(tmp_path / "study")
    for name, message in (("report.html", "holds report.html"), ("dense/results.json", "dense holds results.json")):
        out = tmp_path / name.partition(".")[0].replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(ValueError, match=f"{message} already, and no experiment; use another directory"):
            measure(out)
        assert content(out) == {name: b"mine"}
