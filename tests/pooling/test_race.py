import itertools

import pytest
import torch

from lpk.pooling.race import Race, hypergeometric_tail
from lpk.pooling.samples import Validation
from tests.pooling.evaluators import make_evaluator


@pytest.mark.parametrize(("population", "marked", "drawn"), [(20, 7, 5), (30, 30, 4), (12, 3, 12), (9, 0, 4)])
def test_hypergeometric_tail_counts_the_draws(population, marked, drawn):
    draws = [sum(draw) for draw in itertools.combinations([1] * marked + [0] * (population - marked), drawn)]
    for least in range(drawn + 2):
        expected = sum(found >= least for found in draws) / len(draws)
        assert hypergeometric_tail(least, population, marked, drawn) == pytest.approx(expected)


def test_a_race_rarely_drops_a_network_that_makes_no_more_errors_than_allowed(validation):
    """The networks' errors are as many as allowed and all among the hardest samples: the worst case."""
    images, labels = validation
    made = Race(Validation((images, labels), 20, torch.device("cpu")))
    allowed, error, dropped, draws = 40, 0.1, 0, 2000
    made.margins = torch.linspace(-1, 1, len(labels))
    wrong = torch.arange(len(labels)) < 2 * allowed
    wrong[torch.randperm(2 * allowed, generator=torch.Generator().manual_seed(1))[:allowed]] = False
    for _ in range(draws):
        kept = torch.argsort(made.margins)
        made.draw_heat(allowed, error)
        rank = torch.argsort(torch.argsort(made.margins))  # of the sample that stands at each place
        assert sorted(rank.tolist()) == list(range(len(kept))) and int(rank[:20].max()) < 2 * allowed
        dropped += made.loses(int(wrong[rank[:20]].sum()), allowed)
    assert 0 < dropped / draws <= error + 3 * (error * (1 - error) / draws) ** 0.5


def test_a_heat_drops_a_network_that_gets_everything_wrong(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=20)
    made.hardest_first(made.score())
    made.draw_heat(40, 0.05)
    made.flat.weights.zero_()
    made.flat.rest.zero_()
    made.flat.model[8].bias[0] = 1.0  # always the same class
    before = made.validated
    assert made.score(40) is None and made.validated == before + 20
