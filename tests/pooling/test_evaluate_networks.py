"""lpk.evaluate: any network of a model, by accuracy or by any metric, and what two differ by."""

import math

import pytest
import torch
from torch import nn

import lpk
from lpk.pooling.accuracy import Gain, correct_predictions
from tests.conftest import make_images, make_network


def expected(state, test):
    network = make_network().eval()
    network.load_state_dict(state)
    return correct_predictions(network, test)


def margins(model: nn.Module) -> torch.Tensor:
    """The logit of each sample's own class."""
    images, labels = make_images(60, seed=7)
    assert not model.training and not torch.is_grad_enabled()
    return model(images)[torch.arange(60), labels]


def mean_margin(model: nn.Module) -> float:
    return float(margins(model).mean())


def test_every_kind_of_network(tickets, validation, network):
    pooled = lpk.pool(
        tickets, 4, model=network, validation=validation, statistics="leave", candidates=1, progress=False
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    wrapped = {f"module.{name}": tensor for name, tensor in tickets[1].state_dict.items()}
    network.train()
    found = lpk.evaluate(network, [tickets[4], pooled, wrapped], validation, progress=False)
    assert network.training and all(torch.equal(before[name], x) for name, x in network.state_dict().items())
    for evaluation, state in zip(found, (tickets[4].state_dict, pooled.state_dict, tickets[1].state_dict), strict=True):
        assert torch.equal(evaluation.samples, expected(state, validation))
        assert evaluation.score == pytest.approx(float(evaluation.samples.double().mean()))
    assert [e.score for e in lpk.evaluate(network, tickets, validation, progress=False)] == [
        float(expected(ticket.state_dict, validation).double().mean()) for ticket in tickets
    ]
    alone = lpk.evaluate(network, tickets[4], validation, batch_size=17, progress=False)
    assert alone.score == found[0].score and alone.gain(found[0]) == Gain(0.0, 0.0, 0.0)
    masked = make_network()
    tickets[4].to_prune(masked)  # weight_orig and weight_mask
    assert lpk.evaluate(nn.DataParallel(masked), masked.state_dict(), validation, progress=False).score == alone.score


def test_a_metric_of_samples_has_intervals_and_one_of_a_number_has_none(tickets, network):
    ours, theirs = lpk.evaluate(network, [tickets[0], tickets[3]], metric=margins, unit=" nat", progress=False)
    difference = ours.samples.double() - theirs.samples.double()
    error = 1.96 * float(difference.std()) / math.sqrt(60)
    gain = ours.gain(theirs)
    assert (gain.gain, gain.high - gain.low) == (pytest.approx(float(difference.mean())), pytest.approx(2 * error))
    assert (ours.metric, ours.unit) == ("margins", " nat") and "%" not in f"{ours}{gain}" and "[" in str(gain)
    number, other = lpk.evaluate(network, [tickets[0], tickets[3]], metric=mean_margin, progress=False)
    assert number.metric == "mean margin" and number.samples is None
    assert number.score == pytest.approx(ours.score)
    gain = number.gain(other)
    assert gain.gain == pytest.approx(ours.score - theirs.score, abs=1e-5) and math.isnan(gain.low)
    assert str(gain) == f"{gain.gain:+.4g}"
    with pytest.raises(ValueError, match="margins of 60 samples over mean margin of an unknown number"):
        ours.gain(number)


def test_a_metric_that_changes_the_model_does_not_reach_the_next_network(tickets, network, validation):
    def spoils(model):
        score = float(correct_predictions(model, validation).double().mean())
        for parameter in model.parameters():
            parameter.zero_()
        model.train()
        return score

    found = lpk.evaluate(network, tickets, metric=spoils, unit="%", progress=False)
    plain = lpk.evaluate(network, tickets, validation, progress=False)
    assert [e.score for e in found] == [e.score for e in plain] and found[0].score > 0.4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either `test` samples or a `metric` function"),
        ({"test": 1, "metric": mean_margin}, ValueError, "either `test` samples or a `metric` function"),
        ({"test": 1, "unit": " dB"}, ValueError, "unit is ' dB'; accuracies are in %"),
        ({"metric": lambda model: math.nan}, ValueError, "score returned nan for ticket 0"),
        ({"metric": lambda model: torch.ones(2, 3)}, ValueError, r"score returned \(2, 3\) torch.float32; scores"),
        ({"metric": lambda model: "good"}, TypeError, "score returned a str"),
        ({"test": []}, ValueError, "test has no samples"),
        ({"test": (torch.zeros(2, 1, 6, 6), torch.zeros(2))}, ValueError, "test: inputs .*, or pass a `metric`"),
        ({"test": (torch.zeros(2, 1, 6, 6), torch.tensor([0, 3]))}, ValueError, "has the label 3, the model 3 classes"),
    ],
)
def test_what_is_refused(tickets, network, options, error, message):
    with pytest.raises(error, match=message):
        lpk.evaluate(network, tickets[:1], progress=False, **options)


def test_a_network_of_another_model_is_named(tickets, validation):
    model = nn.Linear(36, 3)
    with pytest.raises(ValueError, match="ticket 2 is of another network than the model: 'weight' is missing"):
        lpk.evaluate(model, tickets[2], validation, progress=False)
    states = [{"weight": torch.ones(3, 5), "bias": torch.ones(3)}]
    with pytest.raises(ValueError, match=r"network 0 is of .* 'weight' has shape \(3, 5\), not \(3, 36\)"):
        lpk.evaluate(model, states, validation, progress=False)
    with pytest.raises(ValueError, match=r"the model returned .*; accuracy needs logits"):
        lpk.evaluate(nn.Flatten(0), {}, validation, progress=False)
