"""The paper's own numbers beside one's own."""

from dataclasses import replace

import pytest

from lpk import presets
from lpk.experiments import comparison
from lpk.experiments.study import Measured
from tests.experiments.plain import SEEDS


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
    halved = replace(preset, train=replace(preset.train, autocast="bfloat16"))
    for chosen, beside in ((preset, True), (changed, False), (halved, False)):
        plan = comparison.plan(chosen, SEEDS)
        found = plan.show([Measured(p, {"density": 0.8 ** p.settings["target"], "accuracy": 0.7}) for p in plan.parts])
        assert len(found.tables) == 2 and len(found.tables[0].heads) == 10 and len(found.tables[1].heads) == 12
        paper = [line for line in found.tables[1].lines if "paper" in line[0]]
        assert len(paper) == (5 if beside else 0)
        if beside:
            assert paper[0][1] == "75.58±0.24" and paper[-1][-2:] == ["72.30±0.12", "–"]
            assert found.tables[0].lines[0][1] == "70.00±0.00"
