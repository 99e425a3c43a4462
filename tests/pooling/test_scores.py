import copy
import itertools

import pytest
import torch

from lpk.pooling.pool import pool
from tests.pooling.pools import CHOICES


def told(recwarn):
    return [str(w.message) for w in recwarn if "all the same" in str(w.message)]


def test_scores_that_tell_no_network_from_another_are_doubted_once(tickets, network, validation, recwarn):
    options = {"model": network, "statistics": "interpolate", **CHOICES}
    pool(tickets, evaluate=lambda model: 0.5, **options)
    one = "evaluate returned 0.5 for every network that was offered to target 0, 1, 2, 3, 4: it did not choose; "
    assert told(recwarn)[0].startswith(one) and len(told(recwarn)) == 1
    recwarn.clear()
    scores = itertools.count()
    pool(tickets, 1, evaluate=lambda model: 0.5 if 5 < (n := next(scores)) <= 10 else n, **options)
    assert "evaluate returned 0.5 for all coefficients in 1 of 4 steps" in told(recwarn)[0]
    recwarn.clear()
    pool(tickets, 1, evaluate=lambda model: float(next(scores)), **options)
    assert not told(recwarn)


@pytest.mark.parametrize("kind", ["exhaustive", "bounded"])
def test_samples_that_tell_no_network_from_another_are_doubted(tickets, network, validation, kind, recwarn):
    options = {"model": network, "statistics": "interpolate", "search": kind, **CHOICES}
    # Also where the target is as good as any: worse candidates are dropped unscored.
    good = [copy.deepcopy(tickets[2].state_dict) for _ in range(3)]
    good[0]["8.bias"] += torch.tensor([9.0, 0.0, 0.0])
    pool(good, 1, validation=validation, **options)
    assert not told(recwarn)
    pool([tickets[2].state_dict] * 3, 1, validation=validation, **options)
    assert told(recwarn)[0].startswith("validation scores every network that was offered to target 1 alike")
    recwarn.clear()
    pool(tickets, 1, validation=validation, **options)
    assert not told(recwarn)
