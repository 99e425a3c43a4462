"""A study in several processes: tickets and parts are queues."""

import json
from pathlib import Path

import pytest
import torch

from lpk import experiments, presets
from lpk.experiments.study import PARTS, Study
from tests.conftest import TINY_PRESET
from tests.distributed.processes import in_ranks

NAMES = ["disagreement", "dense"]
SEEDS = [0, 1, 2]


@pytest.fixture
def preset(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_PRESET.replace("epochs = 3", "epochs = 2").replace("rounds = 3", "rounds = 1"))
    return path


def study(out, preset):
    torch.set_num_threads(1)  # in all processes, so that tickets are of the same bits
    return Study(out, presets.load(preset), SEEDS, progress=False)


def parts(out):
    """What was found, by the file's name."""
    paths = [path for name in NAMES for path in (out / name / PARTS).glob("*.json")]
    found = {path.name: json.loads(path.read_text())["found"] for path in paths}
    for each in found.values():
        each.pop("seconds", None)
    return found


def test_processes_find_what_one_does(preset, tmp_path):
    one, two, scratch = (tmp_path / name for name in ("one", "two", "scratch"))
    scratch.mkdir()
    done = in_ranks(2, _carried_out, scratch, two, preset)
    trained, measured = zip(*done, strict=True)
    assert sorted(trained[0] + trained[1]) == ["seed-0", "seed-1", "seed-2"] and min(map(len, trained)) >= 1
    assert sum(measured) == len(parts(two)) and min(measured) >= 1
    _carried_out(0, one, preset)
    assert parts(one) == parts(two)
    assert (two / "report.html").exists() and (two / "dense" / "results.json").exists()


def _carried_out(rank, out, preset):
    """Which tickets this rank trained, and how many parts it measured."""
    trained, measured = [], []
    subject, fill = Study.subject, Study.fill

    def counted_subject(self, group, *, lock=True, **options):
        if lock:
            trained.append(group.directory)
        return subject(self, group, lock=lock, **options)

    def counted_fill(self, *arguments):
        measured.append(arguments)
        return fill(self, *arguments)

    Study.subject, Study.fill = counted_subject, counted_fill
    try:
        mine = study(out, preset)
        experiments.share_out(NAMES, mine)
        if rank == 0:
            for name in NAMES:
                experiments.carry_out(name, mine)
    finally:
        Study.subject, Study.fill = subject, fill
    return trained, len(measured)


def test_what_was_measured_before_a_failure_is_kept(preset, tmp_path):
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    returned = in_ranks(2, _one_fails, scratch, out, preset)
    assert returned == ["RankFailed: rank 1 failed: OSError: no space", "OSError: no space"]
    kept = parts(out)
    assert kept
    mine = study(out, preset)
    for name in NAMES:
        experiments.carry_out(name, mine)
    assert len(parts(out)) > len(kept) and parts(out).items() >= kept.items()


def _one_fails(rank, out, preset):
    def fill(self, *arguments):
        if rank == 1 and any((out / "disagreement" / PARTS).iterdir()):
            raise OSError("no space")
        return filled(self, *arguments)

    filled, Study.fill = Study.fill, fill
    experiments.share_out(NAMES, study(out, preset))


def test_another_request_on_another_rank(preset, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for text in in_ranks(2, _other_seeds, scratch, tmp_path / "out", preset):
        assert text.startswith("ValueError: the study's seeds of rank 1 is not that of rank 0: all processes need")


def _other_seeds(rank, out, preset):
    experiments.share_out(NAMES, Study(out, presets.load(preset), [rank], progress=False))
