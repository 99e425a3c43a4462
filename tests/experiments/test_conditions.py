"""When pooling pays: tickets of their own for each setting, and what is said of the gains."""

import csv
import json
import statistics
from dataclasses import replace

import pytest

from lpk import experiments, presets
from lpk.experiments import conditions
from lpk.experiments.conditions import Setting
from lpk.experiments.forecast import forecast
from lpk.experiments.study import Measured, Study, groups
from lpk.presets import Preset
from lpk.run import Run
from tests.command import lpk
from tests.conftest import TINY_PRESET
from tests.experiments.plain import SEEDS, Plain, modified, results

OWN = Setting(0.0, 3, 200)
SETTINGS = [OWN, Setting(0.2, 3, 200), Setting(0.0, 6, 200), Setting(0.0, 3, 100)]
DIRECTORIES = ["", "-label-noise-0.2", "-epochs-6", "-samples-100"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Preset:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET.replace("train = 600", "train = 200").replace("rounds = 3", "rounds = 1"))
    return presets.load(path)


@pytest.fixture(scope="module", autouse=True)
def two_values():
    """On each axis, the preset's own and another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "LABEL_NOISE", (0.0, 0.2))
        patch.setattr(conditions, "EPOCHS", (1, 2))
        patch.setattr(conditions, "SAMPLES", (2, 1))
        yield


@pytest.fixture(scope="module")
def studied(preset, two_values, tmp_path_factory) -> Study:
    study = Study(tmp_path_factory.mktemp("study"), preset, SEEDS, progress=False)
    experiments.carry_out("conditions", study)
    return study


def test_the_settings_of_fashion_mnist(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(conditions, "LABEL_NOISE", (0.0, 0.1, 0.2, 0.4))
    monkeypatch.setattr(conditions, "EPOCHS", (0.25, 0.5, 1, 2))
    monkeypatch.setattr(conditions, "SAMPLES", (27, 9, 3, 1))
    preset = presets.load("fashion-mnist")
    plan = conditions.plan(preset, [0, 1])
    of = {group.directory: group.condition for group in groups(plan)}
    names = ["label-noise-0.1", "label-noise-0.2", "label-noise-0.4", "epochs-2", "epochs-4", "epochs-16"]
    names += ["samples-2000", "samples-6000", "samples-18000"]
    assert list(of) == [f"seed-{seed}{name}" for seed in (0, 1) for name in ("", *(f"-{each}" for each in names))]
    assert of["seed-0"] is None  # that of the other experiments, and the point that the axes have in common
    assert len(plan.parts) == 2 * 10 * 13 * 7
    changed = {name: of[f"seed-0-{name}"].preset for name in names}
    assert changed["label-noise-0.4"] == replace(preset, data=replace(preset.data, label_noise=0.4))
    assert changed["samples-6000"] == replace(preset, data=replace(preset.data, train=6000))
    recipes = {epochs: changed[f"epochs-{epochs}"].train for epochs in (2, 4, 16)}
    assert {epochs: recipe.milestones for epochs, recipe in recipes.items()} == {2: (1,), 4: (2, 3), 16: (8, 12)}
    for epochs, recipe in recipes.items():
        expected = replace(preset.train, epochs=epochs, milestones=recipe.milestones)
        assert changed[f"epochs-{epochs}"] == replace(preset, train=expected)


def test_a_presets_own_setting_is_on_every_axis(preset):
    noisy = replace(preset, data=replace(preset.data, label_noise=0.3))
    own = conditions.setting_of(noisy)
    assert own == Setting(0.3, 3, 200)
    axes = conditions.settings_of(noisy)
    assert all(own in settings for settings in axes.values())
    assert [setting.label_noise for setting in axes["label_noise"]] == [0.0, 0.2, 0.3]
    whole = replace(preset, data=replace(preset.data, train=None))
    assert conditions.setting_of(whole).samples == 1437 - preset.data.validation


def test_every_setting_has_tickets_of_its_own(studied):
    identities = set()
    for seed in SEEDS:
        for name, setting in zip(DIRECTORIES, SETTINGS, strict=True):
            with Run.open(studied.out / f"seed-{seed}{name}") as run:
                assert conditions.setting_of(run.preset) == setting
                assert (len(run.data.train), len(run.data.validation)) == (setting.samples, 200)
                assert run.manifest["preset"]["data"].get("label_noise", 0) == setting.label_noise
                identities.add(tuple(run.tickets()[1].flat.weights.tolist()))
    assert len(identities) == len(SEEDS) * len(SETTINGS)
    assert len([path for path in studied.out.iterdir() if path.name.startswith("seed-")]) == len(identities)


def test_results_are_those_of_the_networks(studied):
    found = results(studied, "conditions")
    records = {(Setting(*map(r.get, Setting._fields)), r["variant"], r["round"]): r for r in found["records"]}
    assert len(records) == len(SETTINGS) * len(conditions.VARIANTS) * 2
    for name, setting in zip(DIRECTORIES, SETTINGS, strict=True):
        plain = Plain(studied, f"seed-0{name}")
        for round_, ticket in enumerate(plain.tickets):
            own = records[setting, conditions.TICKETS, round_]
            assert own["accuracy_values"][0] == pytest.approx(plain.accuracy(ticket.state_dict), abs=1e-9)
            again = records[setting, "calibrated tickets", round_]
            expected = plain.accuracy(plain.mixed(round_, round_, 1.0, None))
            # statistics that have settled before all calibration samples were seen may turn a sample or two of 360
            assert again["accuracy_values"][0] == pytest.approx(expected, abs=3 / 360)
            assert 0 < again["forward_samples"] <= 200
            pooled = records[setting, conditions.POOL, round_]
            gains = [a - b for a, b in zip(pooled["accuracy_values"], own["accuracy_values"], strict=True)]
            assert pooled["gain_values"] == pytest.approx(gains) and pooled["forward_samples"] > 0
    with open(studied.out / "conditions" / "conditions.csv") as file:
        assert len(list(csv.DictReader(file))) == len(records)
    page = (studied.out / "report.html").read_text()
    assert 'id="conditions"' in page and page.count("<svg") == 1


def test_tables_have_a_line_for_each_setting_and_variant(studied):
    found = results(studied, "conditions")
    noise, epochs, samples, search = found["tables"]
    assert [line[0] for line in noise["lines"]] == ["0%"] * 7 + ["20%"] * 7
    assert [line[0] for line in epochs["lines"]] == ["3"] * 7 + ["6"] * 7
    assert [line[0] for line in samples["lines"]] == ["100"] * 7 + ["200"] * 7
    assert [line[0] for line in search["lines"]] == conditions.METHODS
    assert noise["lines"][:7] == [["0%", *line[1:]] for line in samples["lines"][7:]]  # what they have in common
    costs = [line[noise["heads"].index("epochs of training")] for line in epochs["lines"]]
    assert costs == ["3 to 5", *["5"] * 5, "3 to 5", "6 to 11", *["11"] * 5, "6 to 11"]
    by_hand = [
        r["gain_values"] for r in found["records"] if r["variant"] == conditions.POOL and r["label_noise"] == 0.2
    ]
    line = noise["lines"][8]
    means = [statistics.fmean(values) for values in zip(*by_hand, strict=True)]
    assert line[1] == conditions.POOL
    assert line[3] == f"{100 * statistics.fmean(means):+.2f}±{100 * statistics.stdev(means):.2f}"
    every = [value for values in by_hand for value in values]
    assert line[7:9] == [str(sum(v > 0 for v in every)), str(sum(v < 0 for v in every))]
    worst = min(map(statistics.fmean, by_hand))
    assert float(line[6].split("±")[0]) == pytest.approx(100 * worst, abs=0.006)


def shown(preset: Preset, seeds: tuple[int, ...]) -> experiments.Findings:
    """Pools gain a tenth of a point for each epoch, half of it with wrong labels, and a tenth for the seed."""

    def accuracy(part) -> float:
        setting = conditions.setting_of(preset if part.condition is None else part.condition.preset)
        ticket = 0.5 + setting.epochs / 100
        if part.settings["pool"] is None:
            return ticket
        gain = setting.epochs / 1000 * (1 if setting.label_noise == 0 else 0.5) + part.seed / 1000
        return ticket + gain * (1 if part.settings["pool"]["method"] == "interpolation" else -1)

    plan = conditions.plan(preset, seeds)
    parts = [
        Measured(p, {"density": 0.7 ** p.settings["target"], "accuracy": accuracy(p), "forward_samples": 10})
        for p in plan.parts
    ]
    return plan.show(parts)


def test_the_summary_is_computed(preset):
    said = shown(preset, (0,)).summary
    assert "+0.30 and +0.15 with 0% and 20% wrong labels; +0.30 and +0.60 with 3 and 6 epochs a round;" in said
    assert "Over calibrated tickets: +0.60 and +0.30 with 0% and 20% wrong labels; +0.60 and +1.20 with" in said
    assert "standard deviation" not in said
    assert "The largest gain is that of Lottery Pools (interpolation), +0.60, with 0% wrong labels, 6 epochs" in said
    assert said.endswith("The tickets themselves gain by more epochs a round: from 3 to 6 +3.00.")
    said = shown(preset, (0, 1)).summary
    assert "+0.35±0.07 and +0.20±0.07 with 0% and 20% wrong labels" in said
    counted = "in 4 settings: Lottery Pools (interpolation) 4 / 0, Lottery Pools (average) 0 / 4, SWA 0 / 4, "
    assert f"Gains / losses of more than the standard deviation over the seeds, {counted}" in said


def test_a_study_of_some_settings_shows_these(preset):
    """What was measured before a deadline, say."""
    plan = conditions.plan(preset, [0])
    few = [part for part in plan.parts if part.condition is None or part.condition.name == "epochs-6"]
    found = plan.show([Measured(p, {"density": 1.0, "accuracy": 0.5, "forward_samples": 1}) for p in few])
    assert len(found.records) == 2 * 2 * len(conditions.VARIANTS)
    assert [len(table.lines) for table in found.tables] == [7, 14, 7, 6]
    longer = [part for part in few if part.condition is not None]
    found = plan.show([Measured(p, {"density": 1.0, "accuracy": 0.5, "forward_samples": 1}) for p in longer])
    assert [len(table.lines) for table in found.tables] == [7, 6] and "gain by more epochs" not in found.summary


def test_it_goes_on_where_it_stopped(studied, monkeypatch):
    parts = sorted((studied.out / "conditions" / "parts").iterdir())
    assert len(parts) == len(SEEDS) * len(SETTINGS) * 2 * len(conditions.VARIANTS)
    before, records = modified(studied.out), results(studied, "conditions")["records"]
    noisy = [path for path in parts if json.loads(path.read_text())["key"]["preset"]["data"].get("label_noise")]
    assert len(noisy) == len(parts) // len(SETTINGS)
    noisy[0].unlink()
    opened = []
    create = Run.create
    monkeypatch.setattr(
        Run, "create", lambda path, *args, **kwargs: opened.append(path.name) or create(path, *args, **kwargs)
    )
    experiments.carry_out("conditions", studied)
    assert opened == ["seed-0-label-noise-0.2"] or opened == ["seed-1-label-noise-0.2"]
    after = modified(studied.out)
    assert all(after[str(path)] == before[str(path)] for path in parts if path != noisy[0])
    assert results(studied, "conditions")["records"] == records


def test_tickets_of_another_setting_are_refused(studied):
    other = replace(studied, preset=replace(studied.preset, train=replace(studied.preset.train, lr=0.2)))
    with pytest.raises(ValueError, match="holds tickets of another preset"):
        experiments.carry_out("conditions", other)
    (group,) = [g for g in groups(conditions.plan(studied.preset, [0])) if g.directory == "seed-0-epochs-6"]
    longer = group.condition.preset
    swapped = replace(longer, data=replace(longer.data, label_noise=0.1))
    wrong = group._replace(condition=replace(group.condition, preset=swapped))
    with pytest.raises(ValueError, match="seed-0-epochs-6 holds tickets of another preset"):
        studied.rounds(wrong)


def test_a_forecast_counts_the_epochs_of_every_setting(studied, preset, tmp_path):
    lines = forecast(studied, {"conditions": conditions.plan(preset, [0])})
    assert lines == [
        "conditions: 56 of 56 parts are finished; at most 0 networks to evaluate",
        "epochs of training: none",
    ]
    fresh = Study(tmp_path / "none", preset, [0], progress=False)
    lines = forecast(fresh, {"conditions": conditions.plan(preset, [0])})
    assert lines[1] == (
        "epochs of training: 26 (seed-0 5, seed-0-label-noise-0.2 5, seed-0-epochs-6 11, seed-0-samples-100 5)"
    )


def test_all_are_those_of_the_paper():
    assert not {"conditions", "compute"} & {*experiments.chosen("all")} and len(experiments.chosen("all")) == 10
    assert experiments.chosen("conditions") == ["conditions"]
    assert "not in the paper" in " ".join(lpk("run", "--list").split())
