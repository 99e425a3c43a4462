"""lpk.reporting.choice and recommendation: which network is recommended, why, and that test scores choose nothing."""

import copy
import random

import pytest

from lpk.reporting import choice, recommendation
from lpk.reporting.choice import Candidate, choose
from tests.reporting.test_report import HOSTILE, made_up

DENSITIES = (1.0, 0.5, 0.25)


def candidates(tickets, pools):
    return [
        Candidate(round_, method, DENSITIES[round_], score)
        for round_ in range(3)
        for method, score in (("ticket", tickets[round_]), ("pool", pools[round_]))
    ]


@pytest.mark.parametrize(
    ("tickets", "pools", "chosen"),
    [
        ((0.90, 0.90, 0.90), (0.90, 0.90, 0.90), ("ticket", 2)),  # all equal: the sparsest ticket
        ((0.90, 0.89, 0.85), (0.91, 0.905, 0.86), ("pool", 1)),  # the ticket of round 1 is not as good
        ((0.90, 0.902, 0.85), (0.91, 0.905, 0.86), ("ticket", 1)),  # it is
        ((0.90, 0.80, 0.70), (0.90, 0.80, 0.70), ("ticket", 0)),
        ((0.90, 0.80, 0.70), (0.92, 0.85, 0.80), ("pool", 0)),
    ],
)
def test_the_sparsest_of_the_equally_good(tickets, pools, chosen):
    made = choose(candidates(tickets, pools), samples=1000)  # one standard error: 0.9 points
    assert (made.chosen.method, made.chosen.round) == chosen
    assert made.ticket.round == made.chosen.round and made.ticket.method == "ticket"


def test_one_standard_error():
    made = choose(candidates((0.5, 0.451, 0.449), (0.0, 0.0, 0.0)), samples=100)
    assert made.error == pytest.approx(0.05) and made.equal == 2 and made.chosen.round == 1
    assert choose(candidates((0.5, 0.451, 0.449), (0.0, 0.0, 0.0)), samples=None).chosen.round == 0  # no error is known
    assert choose([], samples=100) is None


def test_of_pools_alike_the_better_one():
    some = [Candidate(0, "ticket", 1.0, 0.1), Candidate(0, "a", 1.0, 0.9), Candidate(0, "b", 1.0, 0.91)]
    assert choose(some, 100).chosen.method == "b"
    assert choose([some[0], Candidate(0, "b", 1.0, 0.9), some[1]], 100).chosen.method == "b"  # the first of equals


def test_test_scores_choose_nothing():
    results = made_up()
    made = choice.of_results(results)
    random.seed(0)
    other = copy.deepcopy(results)
    for row in [*other["rows"], other["mean"]]:
        row["ticket"] = random.random()
        for pool in row["pools"].values():
            pool["accuracy"] = random.random()
            pool["gain"] = dict.fromkeys(("gain", "low", "high"), random.random())
    assert made is not None and choice.of_results(other) == made
    for row in other["rows"]:
        row["pools"]["average"]["validation_accuracy"] = 0.99
    assert choice.of_results(other).chosen.method == "average"


def validated(results, samples=6000):
    """With the number of validation samples, and tickets that lose accuracy from round to round."""
    results["metric"] = {"name": "accuracy", "unit": "%", "samples": 10_000}
    for row in results["rows"]:
        for method, pool in row["pools"].items():
            pool["baseline_validation_accuracy"] = 0.89 - 0.002 * row["round"]
            pool["validation_accuracy"] = 0.89 if method == "interpolation" else 0.5
            pool["validation_samples"] = samples
    return results


def test_the_sentence_of_a_pool():
    results = validated(made_up())
    assert recommendation.sentence(results) == (
        "Recommended: the pool (interpolation) of round 3, 51.20% of the weights, test accuracy 86.34% (95% interval "
        "85.65 to 87.00): the sparsest of 7 networks whose validation accuracy is within one standard error "
        "(0.40 points) of the best, 89.00%; its ticket's is 88.40%. Chosen on 6,000 validation samples of one seed, "
        "which also picked the pools and so flatter them; not on test samples."
    )


def test_the_sentence_of_a_ticket():
    text = recommendation.sentence(validated(made_up(), samples=100))
    assert "Recommended: the ticket of round 3, 51.20% of the weights, test accuracy 85.00%" in text
    assert "its own is 88.40%, and a plain ticket does." in text


def test_what_was_not_validated_is_not_recommended():
    assert recommendation.sentence(made_up(methods=())) == ""
    results = validated(made_up())
    del results["rows"][3]["pools"]["interpolation"]
    for method in ("average", "swa", "ema"):
        del results["rows"][3]["pools"][method]
    assert "round 2" in recommendation.sentence(results)


def test_scores_that_are_no_fractions():
    results = validated(made_up(methods=("interpolation",)))
    for row in results["rows"]:
        row["pools"]["interpolation"] |= {
            "validation_unit": " dB",
            "validation_samples": None,
            "validation_accuracy": 30.0,
        }
    results["rows"][1]["pools"]["interpolation"]["validation_accuracy"] = 31.25
    text = recommendation.sentence(results)
    assert "of round 1" in text and "whose validation score is the best, 31.25 dB;" in text and "points" not in text
    results["rows"][0]["pools"]["interpolation"]["validation_unit"] = "%"
    assert recommendation.sentence(results) == ""  # they are not of one kind


def test_a_hostile_name_does_no_harm():
    results = validated(made_up())
    for row in results["rows"]:
        row["pools"] = {HOSTILE: row["pools"]["interpolation"]}
    results["methods"] = [HOSTILE]
    assert HOSTILE in recommendation.sentence(results)


def test_wilson():
    low, high = recommendation.wilson(0.9, 1000)
    assert (low, high) == pytest.approx((0.8799, 0.9171), abs=1e-4)
    assert recommendation.wilson(1.0, 50)[0] == pytest.approx(0.9287, abs=1e-4)
