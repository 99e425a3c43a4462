"""What the same training buys otherwise: copies of a ticket trained again, and what is said of their cost."""

import csv
from dataclasses import replace

import pytest
import torch

from lpk import experiments, presets
from lpk.experiments import compute
from lpk.experiments.compute import BEST, ENSEMBLE, LONGER, MEAN, POOL, SWA, TICKETS
from lpk.experiments.forecast import forecast
from lpk.experiments.retraining import last_phase, retrained
from lpk.experiments.study import Measured, Study, groups
from lpk.experiments.subject import Subject
from lpk.presets import Preset
from lpk.pruning.recipe import Recipe, stream
from lpk.run import Run
from tests.conftest import TINY_PRESET
from tests.experiments.plain import SEEDS, Plain, modified, results

ROUNDS = (0, 1)


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Preset:
    """The learning rate is constant after the rewind epoch, for two epochs, so that there is SWA."""
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    text = TINY_PRESET.replace("train = 600", "train = 200").replace("rounds = 3", "rounds = 1")
    path.write_text(text.replace("milestones = [2]", "milestones = [1]"))
    return presets.load(path)


@pytest.fixture(scope="module")
def studied(preset, tmp_path_factory) -> Study:
    study = Study(tmp_path_factory.mktemp("study"), preset, SEEDS, progress=False)
    experiments.carry_out("compute", study)
    return study


@pytest.fixture
def plain(studied) -> Plain:
    return Plain(studied, "seed-0")


@pytest.fixture
def subject(studied, plain):  # which reads the run before it is locked
    with Run.open(studied.out / "seed-0") as run:
        yield Subject(run, run.tickets(), "0")


def test_a_round_trained_again_in_its_own_order_is_the_ticket(subject):
    for target, start in ((0, 0), (1, subject.run.preset.imp.rewind)):
        ticket = subject.tickets[target]
        again = retrained(subject, target, seed=subject.run.seed, start=start)
        assert len(again) == 2
        assert torch.equal(again[-1].weights, ticket.flat.weights) and torch.equal(again[-1].rest, ticket.flat.rest)
        assert not torch.equal(again[0].weights, ticket.flat.weights)


def test_copies_differ_and_keep_the_mask(subject):
    ticket = subject.tickets[1]
    copies = [retrained(subject, 1, seed=stream(0, "copy", i), start=1)[-1] for i in range(2)]
    assert not torch.equal(copies[0].weights, copies[1].weights)
    for copy in copies:
        assert not copy.weights[~ticket.mask].any() and not torch.equal(copy.weights, ticket.flat.weights)
    mean = compute.mean([ticket.flat, *copies])
    torch.testing.assert_close(mean.weights, (ticket.flat.weights + copies[0].weights + copies[1].weights) / 3)


def test_copies_have_seeds_of_their_own_and_the_ticket_begins_where_it_began(subject, monkeypatch):
    asked = []

    def spy(of, target, *, seed, start):
        asked.append((target, seed, start))
        return [of.tickets[target].flat]

    monkeypatch.setattr(compute, "retrained", spy)
    seeds = [stream(subject.run.seed, "copy", i) for i in range(2)]
    for target in ROUNDS:
        compute._measure(subject, target, copies=2, swa=True)
    own = subject.run.seed
    assert asked[:3] == [(0, seeds[0], 1), (0, seeds[1], 1), (0, own, 0)]
    assert asked[3:] == [(1, seeds[0], 1), (1, seeds[1], 1), (1, own, 1)]


def test_results_are_those_of_the_networks(studied, plain, subject):
    records = {(r["variant"], r["round"]): r for r in results(studied, "compute")["records"]}
    assert {label for label, _ in records} == {*compute.POOLS, SWA, LONGER, BEST, MEAN, ENSEMBLE}
    longer = Plain(studied, "seed-0-epochs-9")
    validation = subject.run.data.validation.tensors()
    for round_ in ROUNDS:
        ticket = plain.tickets[round_]

        def accuracy(label: str, round_: int = round_) -> float:
            return records[label, round_]["accuracy_values"][0]

        assert accuracy(TICKETS) == plain.accuracy(ticket.state_dict)
        assert accuracy(LONGER) == longer.accuracy(longer.tickets[round_].state_dict)
        copies = [retrained(subject, round_, seed=stream(0, "copy", i), start=1)[-1] for i in range(2)]
        members = [ticket.layout.unflatten(flat) for flat in (ticket.flat, *copies)]
        logits = [plain.logits(state) for state in members]
        ensemble = (sum(logits).argmax(1) == plain.test[1]).double().mean()
        assert accuracy(ENSEMBLE) == pytest.approx(float(ensemble))
        picks = []
        for state in members:
            plain.model.load_state_dict(state)
            with torch.no_grad():
                picks.append(int((plain.model.eval()(validation[0]).argmax(1) == validation[1]).sum()))
        assert accuracy(BEST) == plain.accuracy(members[picks.index(max(picks))])
        ends = retrained(subject, round_, seed=0, start=1 if round_ else 0)
        for label, networks in ((MEAN, [ticket.flat, *copies]), (SWA, ends)):
            state = ticket.layout.unflatten(compute.mean(networks))
            expected = plain.accuracy(plain.renewed(state))
            assert accuracy(label) == pytest.approx(expected, abs=3 / 360)  # statistics may settle earlier
    with open(studied.out / "compute" / "compute.csv") as file:
        assert len(list(csv.DictReader(file))) == len(records)


def test_costs_are_counted(preset, studied):
    longer = presets.load("fashion-mnist")  # 8 epochs a round, rewound to the first, twelve rounds
    spent = compute.costs(longer)
    assert (spent[TICKETS].one[0], spent[TICKETS].one[1], spent[TICKETS].all) == (8, 15, 8 + 12 * 7)
    assert set(spent[POOL].one) == {92} and spent[POOL].all == 92
    assert (spent[LONGER].one[0], spent[LONGER].one[1], spent[LONGER].all) == (24, 47, 24 + 12 * 23)
    assert (spent[MEAN].one[0], spent[MEAN].one[1], spent[MEAN].all) == (8 + 14, 15 + 14, 92 + 13 * 14)
    assert {label for label, cost in spent.items() if cost.networks == 3} == {ENSEMBLE}
    assert SWA not in compute.costs(presets.load("demo"))  # one epoch alone has the last learning rate
    found = results(studied, "compute")
    table = found["tables"][0]
    column = {head: table["heads"].index(head) for head in table["heads"]}
    lines = {line[0]: line for line in table["lines"]}
    assert lines[TICKETS][column["epochs, one network"]] == "3 to 5" and lines[TICKETS][column["gain"]] == "–"
    assert lines[POOL][column["epochs, one network"]] == "5"
    assert lines[LONGER][column["epochs, all densities"]] == str(9 + 8)
    assert lines[ENSEMBLE][column["networks at inference"]] == "3"
    record = next(r for r in found["records"] if (r["variant"], r["round"]) == (MEAN, 1))
    assert (record["epochs"], record["networks"]) == (5 + 4, 1)


def test_the_last_learning_rate():
    assert last_phase(Recipe(epochs=8, milestones=(4, 6)), 1) == 2
    assert last_phase(Recipe(epochs=8, milestones=(4, 9)), 1) == 4  # a drop that never comes
    assert last_phase(Recipe(epochs=8), 3) == 5
    assert last_phase(Recipe(epochs=8, warmup=5), 1) == 3


def test_gains_are_against_the_tickets_of_the_same_seed_and_density(preset):
    """Copies gain a point for each seed, at the sparse end alone; more epochs lose one."""
    plan = compute.plan(preset, [0, 1])

    def found(part) -> dict:
        own = 0.5 + 0.1 * part.seed
        density = {"density": 0.7 ** part.settings["target"]}
        if "copies" in part.settings:
            gain = 0.01 * (1 + part.seed) * part.settings["target"]
            return density | {"accuracy": dict.fromkeys((BEST, MEAN, ENSEMBLE, SWA), own + gain)}
        return density | {"accuracy": own - (0.01 if part.condition else 0)}

    shown = plan.show([Measured(part, found(part)) for part in plan.parts])
    lines = {line[0]: line[2:6] for line in shown.tables[0].lines}
    assert lines[MEAN] == ["+0.75±0.35", "+0.00±0.00 at 100.00%", "2", "0"]
    assert lines[LONGER] == ["-1.00±0.00", "-1.00±0.00 at 100.00%", "0", "4"]
    assert f"{ENSEMBLE} +0.75±0.35" in shown.summary and set(shown.figures) == {"gains", "matched"}


def test_it_goes_on_where_it_stopped(studied):
    parts = sorted((studied.out / "compute" / "parts").iterdir())
    assert len(parts) == len(SEEDS) * len(ROUNDS) * (len(compute.POOLS) + 2)
    before, records = modified(studied.out), results(studied, "compute")["records"]
    copied = next(path for path in parts if '"copies": 2' in path.read_text())
    copied.unlink()
    experiments.carry_out("compute", studied)
    after = modified(studied.out)
    assert all(after[str(path)] == before[str(path)] for path in parts if path != copied)
    assert results(studied, "compute")["records"] == records


def test_a_forecast_counts_the_epochs_of_the_copies(studied, preset, tmp_path):
    fresh = Study(tmp_path / "none", preset, [0], progress=False)
    lines = forecast(fresh, {"compute": compute.plan(preset, [0])})
    # two copies of two epochs for either round, and the tickets again, for SWA
    assert lines[1] == "epochs of training: 35 (seed-0 5, compute seed-0 13, seed-0-epochs-9 17)"
    assert forecast(studied, {"compute": compute.plan(preset, SEEDS)})[1] == "epochs of training: none"
    dull = replace(preset, train=replace(preset.train, milestones=(2,)))
    assert "compute seed-0 8," in forecast(fresh, {"compute": compute.plan(dull, [0])})[1]


def test_it_shares_the_tickets_of_conditions(preset):
    names = [group.directory for group in groups(compute.plan(preset, [0]))]
    assert names == ["seed-0", "seed-0-epochs-9"]
