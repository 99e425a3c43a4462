"""What every experiment finds, held against plain PyTorch."""

import csv
import json
import statistics
from dataclasses import replace

import pytest
import torch
from torch import nn

from lpk import experiments, presets
from lpk.experiments import comparison, ensemble, findings, interpolation
from lpk.run import Run
from lpk.tickets.tickets import Tickets
from tests.experiments.plain import ROUNDS, SEEDS, results


@pytest.mark.parametrize("name", experiments.chosen("all"))
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
    assert page.count("<svg") == sum(len(results(done, each)["figures"]) for each in experiments.chosen("all"))
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


def test_spread_is_the_sample_standard_deviation():
    three = findings.spread([0.7, 0.72, 0.71])
    assert str(three) == "71.00±1.00" and three.points == "+71.00±1.00"
    assert str(findings.spread([0.7])) == "70.00" and findings.spread([0.7]).std is None
