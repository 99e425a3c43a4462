import math

import pytest
import torch

from lpk.pooling.accuracy import correct_predictions, paired_gain
from tests.conftest import make_network


def test_correct_predictions_leave_the_mode(validation):
    network = make_network().train()
    correct = correct_predictions(network, validation, batch_size=50)
    assert network.training
    with torch.no_grad():
        expected = network.eval()(validation[0]).argmax(1) == validation[1]
    assert torch.equal(correct, expected)


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
