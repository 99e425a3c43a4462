"""What is said before anything is computed: what there is, what is left to do, and what that takes."""

from lpk import experiments, presets
from lpk.experiments import averages, pools
from lpk.experiments.forecast import forecast
from lpk.presets import Preset
from tests.command import error, lpk
from tests.experiments.plain import modified


def test_dry_run_writes_nothing_and_counts(done, preset_file, tmp_path):
    out = tmp_path / "study"
    text = lpk("run", "all", "--preset", preset_file, "--seeds", 1, "--out", out, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    assert "disagreement: 0 of 1 parts are finished; at most 4 networks" in text
    assert "epochs of training: 21 (seed-0 9, seed-0-norewind 12)" in text
    assert "on this machine: training" in text
    before = modified(done.out)
    lines = forecast(done, {"averages": averages.plan(done.preset, range(3))})
    assert lines[0] == "averages: 16 of 24 parts are finished; at most 20 networks to evaluate"
    assert lines[1] == "epochs of training: 21 (seed-2 9, seed-2-norewind 12)"
    assert modified(done.out) == before


def test_list_and_wrong_names(tmp_path):
    listed = lpk("run", "--list")
    for name, experiment in experiments.EXPERIMENTS.items():
        assert name in listed and experiment.shows in " ".join(listed.split())
    assert "experiment is 'soup'; it must be all or one of averages" in error("run", "soup", "--out", tmp_path)


def test_networks_are_counted():
    preset: Preset = presets.load("cifar10-resnet18")
    assert pools.networks(preset, None) == 1
    assert pools.networks(preset, pools.INTERPOLATION) == 19 * 11 + 2
    assert pools.networks(preset, {**pools.INTERPOLATION, "candidates": 4}) == 4 * 11 + 2
    assert pools.networks(preset, pools.AVERAGE) == 19 + 2
    assert pools.networks(preset, {"method": "swa"}) == 3
