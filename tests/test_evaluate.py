import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from lpk import evaluate
from lpk.evaluate import Evaluator, correct_predictions, paired_gain
from lpk.flat import Layout
from tests.conftest import make_images, make_network


def make_evaluator(network, **options):
    layout = Layout.of_model(network)
    made = Evaluator(network, layout, **options)
    made.flat.load(layout.flatten(network.state_dict()))
    return made


def count(network, images, labels):
    with torch.no_grad():
        return int((network.eval()(images).argmax(1) == labels).sum())


@pytest.mark.parametrize("batch_size", [1, 7, 64, 203, 500])
def test_score_is_the_number_of_correct_predictions(network, validation, batch_size):
    score = make_evaluator(network, validation=validation, calibration=None, statistics="leave", batch_size=batch_size)
    assert score.score().value == count(network, *validation)


def test_score_from_a_loader(network, validation):
    loader = DataLoader(TensorDataset(*validation), batch_size=13)
    assert make_evaluator(network, validation=loader, statistics="leave").score().value == count(network, *validation)


def test_calibration_equals_update_bn(network, validation, calibration):
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32)
    made.calibrate()
    reference = copy.deepcopy(network)
    update_bn(DataLoader(TensorDataset(*calibration), batch_size=32), reference)
    for i in (1, 4):
        ours, theirs = made.flat.model[i], reference[i]
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)
        assert ours.momentum == 0.1 and not ours.training and int(ours.num_batches_tracked) == 0


def test_calibration_does_not_depend_on_what_was_there(network, validation, calibration):
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32)
    made.calibrate()
    first = made.flat.rest.clone()
    made.flat.rest[made.flat.statistics] = 17.0
    made.calibrate()
    assert torch.equal(made.flat.rest, first)


def test_shorter_last_calibration_batch_is_left_out(network, validation, calibration):
    images, labels = calibration
    full = make_evaluator(network, validation=validation, calibration=(images[:128], labels[:128]), batch_size=32)
    more = make_evaluator(network, validation=validation, calibration=(images[:141], labels[:141]), batch_size=32)
    full.calibrate()
    more.calibrate()
    assert torch.equal(full.flat.rest, more.flat.rest)


def test_only_batchnorm_trains_during_calibration(validation, calibration):
    seen = []

    class Spy(nn.Dropout):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Spy(0.9), nn.Flatten(), nn.Linear(64, 3))
    made = make_evaluator(network, validation=validation, calibration=calibration)
    made.calibrate()
    assert seen and not any(seen)


def test_streamed_samples_give_the_same_answers(network, validation, calibration, monkeypatch):
    loaders = {
        "validation": DataLoader(TensorDataset(*validation), batch_size=13),
        "calibration": DataLoader(TensorDataset(*calibration), batch_size=20),
    }
    held = make_evaluator(network, **loaders, batch_size=32)
    monkeypatch.setattr(evaluate, "MEMORY_BUDGET", 1000)
    streamed = make_evaluator(network, **loaders, batch_size=32)
    assert streamed.validation.source is not None and held.validation.source is None
    for made in (held, streamed):
        made.calibrate()
    assert torch.equal(held.flat.rest, streamed.flat.rest)
    assert held.score().value == streamed.score().value


def test_too_many_errors_end_the_scoring(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=10)
    errors = made.total - made.score().value
    assert made.score(errors).value == made.total - errors
    before = made.forward_samples
    assert made.score(errors - 1) is None
    made.hardest_first(made.score())
    before = made.forward_samples
    assert made.score(errors // 2) is None
    assert made.forward_samples - before <= errors // 2 + 20, "the errors were not asked first"


def test_order_of_samples_does_not_change_the_count(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=16)
    first = made.score()
    made.hardest_first(first)
    again = made.score()
    assert again.value == first.value
    assert torch.equal(again.margins, first.margins.sort(stable=True).values)


def test_missing_calibration_warns_once_and_interpolates(network, validation):
    with pytest.warns(UserWarning, match="no calibration samples") as caught:
        made = make_evaluator(network, validation=validation)
    assert made.statistics == "interpolate" and len(caught) == 1


def test_no_warning_without_batchnorm(validation, recwarn):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    made = make_evaluator(network, validation=validation)
    made.calibrate()
    assert not recwarn.list and made.forward_samples == 0


def test_bad_samples_are_named(network, validation):
    images, labels = validation
    with pytest.raises(ValueError, match="validation has no samples"):
        make_evaluator(network, validation=(images[:0], labels[:0]), statistics="leave")
    with pytest.raises(ValueError, match="calibration has no samples"):
        make_evaluator(network, validation=validation, calibration=[])
    with pytest.raises(ValueError, match="one integer label for each input"):
        make_evaluator(network, validation=(images, labels[:-1]), statistics="leave")
    with pytest.raises(ValueError, match="yields dict"):
        make_evaluator(network, validation=[{"x": images}], statistics="leave")
    with pytest.raises(ValueError, match="either"):
        make_evaluator(network)
    with pytest.raises(ValueError, match="statistics is 'keep'"):
        make_evaluator(network, validation=validation, statistics="keep")
    with pytest.raises(ValueError, match="batch_size is 0"):
        make_evaluator(network, validation=validation, statistics="leave", batch_size=0)
    with pytest.raises(ValueError, match="logits"):
        make_evaluator(nn.Sequential(*network[:4]), validation=validation, statistics="leave").score()


def test_correct_predictions_leave_the_mode(validation):
    network = make_network().train()
    correct = correct_predictions(network, validation, batch_size=50)
    assert network.training and int(correct.sum()) == count(network, *validation)


def test_paired_gain_is_the_wald_interval_of_the_differences():
    ours = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    theirs = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    gain = paired_gain(ours, theirs)
    difference = [0, 1, 0, 0, 0, -1, 1, 0]
    mean = sum(difference) / 8
    error = math.sqrt(sum((d - mean) ** 2 for d in difference) / 7) / math.sqrt(8)
    assert gain.gain == pytest.approx(1 / 8)
    assert (gain.low, gain.high) == (pytest.approx(mean - 1.96 * error), pytest.approx(mean + 1.96 * error))


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        base = torch.rand(500, generator=generator)
        ours, theirs = base < 0.83, (base + 0.1 * torch.randn(500, generator=generator)) < 0.80
        gain = paired_gain(ours, theirs)
        covered += gain.low <= 0.0312 <= gain.high  # the truth, from 10^8 draws
    assert 360 <= covered <= 396


def test_images_of_any_count_fit_one_batch_size(network):
    images, labels = make_images(5, seed=9)
    made = make_evaluator(network, validation=(images, labels), statistics="leave", batch_size=64)
    assert made.score().value == count(network, images, labels)
    assert made.forward_samples == 64
