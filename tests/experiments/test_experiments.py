"""lpk.experiments: every experiment once, on tickets that all of them share, held against plain PyTorch."""

import copy
import csv
import json
import os
import signal
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lpk import experiments, presets
from lpk.experiments import averages, comparison, ensemble, findings, interpolation, pools
from lpk.experiments.forecast import forecast
from lpk.experiments.study import Measured, Part, Study
from lpk.presets import Preset
from lpk.run import Run
from lpk.tickets.tickets import Tickets
from tests.command import in_a_process, lpk, start
from tests.conftest import TINY_PRESET

SEEDS = (0, 1)
ROUNDS = range(4)


@pytest.fixture(scope="module", autouse=True)
def threads():
    """One: for networks this small two take thrice as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def preset_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.fixture(scope="module")
def study(preset_file, tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), presets.load(preset_file), SEEDS, progress=False)


@pytest.fixture(scope="module")
def done(study) -> Study:
    for name in experiments.EXPERIMENTS:
        experiments.carry_out(name, study)
    return study


def results(study: Study, name: str) -> dict:
    return json.loads((study.out / name / "results.json").read_text())


class Plain:
    """A seed's tickets and samples, for references in plain PyTorch."""

    def __init__(self, study: Study, directory: str) -> None:
        self.tickets = Tickets.load(study.out / directory)
        with Run.open(study.out / directory) as run:
            self.model = run.model()
            self.test = run.data.test.tensors()
            self.calibration = run.calibration().tensors()[0]

    def logits(self, state: dict) -> torch.Tensor:
        self.model.load_state_dict(state)
        with torch.no_grad():
            return self.model.eval()(self.test[0])

    def accuracy(self, state: dict) -> float:
        return float((self.logits(state).argmax(1) == self.test[1]).double().mean())

    def mixed(self, first: int, second: int, alpha: float, keep: int | None) -> dict:
        """α·first + (1 − α)·second as state dicts, pruned globally, BatchNorm's statistics renewed by update_bn."""
        a, b = self.tickets[first].state_dict, self.tickets[second].state_dict
        state = {n: alpha * a[n] + (1 - alpha) * b[n] if a[n].is_floating_point() else a[n] for n in a}
        names = self.tickets.layout.prunable
        if keep is not None:
            magnitudes = torch.cat([state[n].abs().flatten() for n in names])
            threshold = magnitudes.sort(descending=True).values[keep - 1]
            for n in names:
                state[n] = torch.where(state[n].abs() >= threshold, state[n], 0.0)
        model = copy.deepcopy(self.model)
        model.load_state_dict(state)
        update_bn(self.calibration.split(100), model)
        return model.state_dict()


@pytest.fixture(scope="module")
def plain(done) -> Plain:
    return Plain(done, "seed-0")


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_leaves_json_csv_plot_and_a_section(done, name):
    found = results(done, name)
    assert found["experiment"] == name and found["seeds"] == [0, 1] and found["preset"]["name"] == "tiny"
    assert found["records"] and found["summary"].endswith(".")
    with open(done.out / name / f"{name}.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found["records"])
    for record in found["records"]:
        for key in [key for key in record if key.endswith("_values")]:
            values, quantity = record[key], key.removesuffix("_values")
            assert len(values) == len(SEEDS)
            assert record[quantity] == pytest.approx(statistics.mean(values))
            assert record[f"{quantity}_std"] == pytest.approx(statistics.stdev(values))
    for table in found["tables"]:
        assert all(len(line) == len(table["heads"]) for line in table["lines"])
    assert all((done.out / name / f"{figure}.svg").read_text().count("<svg") == 1 for figure in found["figures"])
    if name != "robustness":
        assert found["figures"]
    page = (done.out / "report.html").read_text()
    assert f'id="{name}"' in page and found["description"] in page.replace("&#x27;", "'")
    assert page.count("<svg") == sum(len(results(done, each)["figures"]) for each in experiments.EXPERIMENTS)
    assert "href=" not in page.replace("xlink:href=", "") and "src=" not in page


def test_averages_equal_those_of_plain_state_dicts(done, plain):
    records = [r for r in results(done, "averages")["records"] if r["rewind"]]
    assert [(r["denser"], r["sparser"]) for r in records] == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    own = [plain.accuracy(ticket.state_dict) for ticket in plain.tickets]
    for record in records:
        i, j = record["denser"], record["sparser"]
        expected = plain.accuracy(plain.mixed(j, i, 0.5, plain.tickets[j].keep))
        # statistics that have settled before all calibration samples were seen may turn a sample or two of 360
        assert record["accuracy_values"][0] == pytest.approx(expected, abs=3 / 360)
        gain = record["accuracy_values"][0] - max(own[i], own[j])
        assert record["gain_values"][0] == pytest.approx(gain, abs=1e-9)


def test_tickets_without_rewinding_start_from_initialization(done):
    manifest = json.loads((done.out / "seed-1-norewind" / "manifest.json").read_text())
    assert manifest["preset"]["imp"]["rewind"] == 0 and manifest["seed"] == 1
    with_it, without = (Tickets.load(done.out / f"seed-1{suffix}") for suffix in ("", "-norewind"))
    assert torch.equal(with_it[0].flat.weights, without[0].flat.weights)  # the dense network is the same
    assert not torch.equal(with_it[1].flat.weights, without[1].flat.weights)


def test_interpolation_runs_from_ticket_to_ticket(done, plain):
    records = [r for r in results(done, "interpolation")["records"] if r["rewind"]]
    assert len(records) == 3 * 11
    line = {round(r["round"] - 1, 9): r for r in records[11:22]}
    assert sorted(line) == pytest.approx([k / 10 for k in range(11)])
    for place, ticket in ((0.0, 1), (1.0, 2)):
        state = plain.tickets[ticket].state_dict
        loss = float(nn.functional.cross_entropy(plain.logits(state), plain.test[1]))
        assert line[place]["loss_values"][0] == pytest.approx(loss, rel=1e-4)
        assert line[place]["error_values"][0] == pytest.approx(1 - plain.accuracy(state), abs=1e-9)
    state = plain.mixed(1, 2, 0.7, None)
    loss = float(nn.functional.cross_entropy(plain.logits(state), plain.test[1]))
    assert line[0.3]["loss_values"][0] == pytest.approx(loss, rel=0.1)


def test_barrier_is_the_highest_error_over_the_ends():
    errors = ((0.1, 0.3), (0.5, 0.2), (0.4, 0.4), (0.2, 0.1))
    path = [interpolation.Point(i, findings.spread([0.0]), findings.spread(e)) for i, e in enumerate(errors)]
    assert interpolation._barrier(path).values == pytest.approx((0.5 - 0.15, 0.4 - 0.2))


def test_comparison_reports_what_the_networks_do(done, plain):
    records = results(done, "comparison")["records"]
    assert [r["round"] for r in records] == [*ROUNDS] * 6
    by_variant = {v: [r for r in records if r["variant"] == v] for v in comparison.VARIANTS}
    for ticket, record in zip(plain.tickets, by_variant["original tickets"], strict=True):
        assert record["accuracy_values"][0] == pytest.approx(plain.accuracy(ticket.state_dict), abs=1e-9)
        assert record["density"] == ticket.density
    readings = [[r["accuracy"] for r in by_variant[v]] for v in comparison.VARIANTS if v.startswith("EMA")]
    assert len(readings) == 2 and readings[0] != readings[1]
    (table,) = results(done, "comparison")["tables"]
    assert [line[0] for line in table["lines"]] == [*list(comparison.VARIANTS)[1:], "original tickets"]
    for i, j in table["best"]:
        shown = [float(line[j].split("±")[0]) for line in table["lines"]]
        assert shown[i] == max(shown)


def test_dense_candidates_coefficients_and_prune_repeat_the_comparison(done):
    """The same pool, whichever experiment asks."""

    def accuracies(name: str, variant: str) -> list[list[float]]:
        return [r["accuracy_values"] for r in results(done, name)["records"] if r["variant"] == variant]

    pool = accuracies("comparison", "Lottery Pools (interpolation)")
    assert accuracies("candidates", "all 3 candidates") == pool
    assert accuracies("coefficients", "11 coefficients") == pool
    assert accuracies("prune", "prune during") == pool
    assert accuracies("dense", "pool (interpolation)") == pool[:1]
    assert accuracies("coefficients", "1 coefficient") == accuracies("comparison", "Lottery Pools (average)")


def test_candidates_are_the_nearest_four_and_nine():
    preset = presets.load("cifar10-resnet18")
    options = [p.settings["pool"] for p in experiments.EXPERIMENTS["candidates"].plan(preset, [0]).parts[:4]]
    assert [o and o.get("candidates") for o in options] == [None, None, 4, 9]
    small = replace(preset, imp=replace(preset.imp, rounds=9))
    assert len(experiments.EXPERIMENTS["candidates"].plan(small, [0]).parts) == 10 * 3


def test_disagreement_by_hand(done, plain):
    classes = [plain.logits(ticket.state_dict).argmax(1).tolist() for ticket in plain.tickets]
    for record in results(done, "disagreement")["records"]:
        a, b = classes[record["first"]], classes[record["second"]]
        by_hand = sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
        assert record["disagreement_values"][0] == pytest.approx(by_hand, abs=1e-9)


def test_ensemble_is_the_mean_of_the_logits_of_three(done, plain):
    records = results(done, "ensemble")["records"]
    of = {(r["variant"], r["round"]): r for r in records}
    for target, members in ((0, (0, 1, 2)), (1, (1, 0, 2)), (3, (3, 2, 1))):
        logits = sum(plain.logits(plain.tickets[i].state_dict) for i in members) / 3
        expected = float((logits.argmax(1) == plain.test[1]).double().mean())
        record = of[ensemble.LABELS["ensemble"], target]
        assert record["accuracy_values"][0] == pytest.approx(expected, abs=1e-9)
        assert record["passes"] == 3 and of[ensemble.LABELS["pool"], target]["passes"] == 1
        costs = [of[ensemble.LABELS["ticket"], i]["multiply_adds"] for i in members]
        assert record["multiply_adds"] == pytest.approx(sum(costs))


def test_multiply_adds_of_the_dense_network_are_those_of_pytorch(done, plain):
    from torch.utils.flop_counter import FlopCounterMode

    model = plain.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(plain.test[0][:1])
    of = {(r["variant"], r["round"]): r for r in results(done, "ensemble")["records"]}
    assert of["ticket", 0]["multiply_adds"] == counter.get_total_flops() / 2
    assert of["ticket", 3]["multiply_adds"] < of["ticket", 0]["multiply_adds"] / 2


def test_robustness_is_the_accuracy_on_those_samples(done, plain):
    from lpk.data import corruptions

    with Run.open(done.out / "seed-0") as run:
        split = corruptions.corrupted(run.data, "contrast", 4)
    images, labels = split.tensors()
    plain.model.load_state_dict(plain.tickets[2].state_dict)
    with torch.no_grad():
        expected = float((plain.model.eval()(images).argmax(1) == labels).double().mean())
    records = results(done, "robustness")["records"]
    assert len(records) == 2 * 7 * 5 * 4
    (record,) = [
        r for r in records
        if (r["variant"], r["corruption"], r["severity"], r["round"]) == ("ticket", "contrast", 4, 2)
    ]  # fmt: skip
    assert record["accuracy_values"][0] == pytest.approx(expected, abs=1e-9)
    overall = results(done, "robustness")["tables"][0]["lines"][0]
    mean = statistics.mean(r["accuracy"] for r in records if r["variant"] == "ticket" and r["round"] == 2)
    assert float(overall[3].split("±")[0]) == pytest.approx(100 * mean, abs=0.006)


# --- the paper's own numbers ------------------------------------------------------------------------------------------


def test_papers_tables_say_what_its_text_says():
    def gains(name: str) -> list[float]:
        accuracies = comparison.paper_numbers(presets.load(name))["accuracies"]
        pool, ticket = ([float(x.split("±")[0]) for x in accuracies[m]] for m in ("interpolation", "ticket"))
        return [round(a - b, 2) for a, b in zip(pool, ticket, strict=True)]

    assert max(gains("cifar100-vgg16")) == 1.88 and gains("cifar100-vgg16")[0] == 1.69
    assert max(gains("cifar100-resnet18")[1:]) == 1.72 and gains("cifar100-resnet18")[0] == 2.22
    assert max(gains("cifar10-vgg16")) == 0.93 and gains("cifar10-vgg16")[-1] == 0.60
    assert max(gains("cifar10-resnet18")) == 1.05
    assert max(gains("imagenet-resnet18")[1:]) == 0.55 and max(gains("imagenet-resnet34")[1:]) == 0.63


def test_every_paper_preset_has_its_numbers_and_no_other():
    for name in presets.names():
        preset = presets.load(name)
        numbers = comparison.paper_numbers(preset)
        assert (numbers is None) == (name in ("demo", "digits", "fashion-mnist"))
        if numbers:
            assert len(numbers["densities"]) == preset.imp.rounds
            for accuracies in numbers["accuracies"].values():
                assert len(accuracies) == preset.imp.rounds
            density = 0.8 ** (len(numbers["densities"]) - 1)
            assert numbers["densities"][-1] == pytest.approx(100 * density, abs=0.011)


def test_papers_numbers_stand_beside_ones_own_only_for_the_papers_preset():
    preset = presets.load("cifar100-resnet18")
    changed = replace(preset, imp=replace(preset.imp, rewind=8))
    for chosen, beside in ((preset, True), (changed, False)):
        plan = comparison.plan(chosen, SEEDS)
        found = plan.show([Measured(p, {"density": 0.8 ** p.settings["target"], "accuracy": 0.7}) for p in plan.parts])
        assert len(found.tables) == 2 and len(found.tables[0].heads) == 10 and len(found.tables[1].heads) == 12
        paper = [line for line in found.tables[1].lines if "paper" in line[0]]
        assert len(paper) == (5 if beside else 0)
        if beside:
            assert paper[0][1] == "75.58±0.24" and paper[-1][-2:] == ["72.30±0.12", "–"]
            assert found.tables[0].lines[0][1] == "70.00±0.00"


# --- parts ------------------------------------------------------------------------------------------------------------


def modified(directory: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}


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
    with pytest.raises(ValueError, match="seed-0 holds tickets of another preset"):
        experiments.carry_out("disagreement", other)
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


# --- the command line -------------------------------------------------------------------------------------------------


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
    status, _, err = in_a_process("run", "soup", "--out", tmp_path)
    assert status == 1 and "experiment is 'soup'; it must be all or one of averages" in err


def test_spread_is_the_sample_standard_deviation():
    three = findings.spread([0.7, 0.72, 0.71])
    assert str(three) == "71.00±1.00" and three.points == "+71.00±1.00"
    assert str(findings.spread([0.7])) == "70.00" and findings.spread([0.7]).std is None


def test_networks_are_counted():
    preset: Preset = presets.load("cifar10-resnet18")
    assert pools.networks(preset, None) == 1
    assert pools.networks(preset, pools.INTERPOLATION) == 19 * 11 + 2
    assert pools.networks(preset, {**pools.INTERPOLATION, "candidates": 4}) == 4 * 11 + 2
    assert pools.networks(preset, pools.AVERAGE) == 19 + 2
    assert pools.networks(preset, {"method": "swa"}) == 3
