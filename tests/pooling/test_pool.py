import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from lpk.pooling.pool import pool
from tests.pooling.pools import CHOICES, same_network


@pytest.mark.parametrize("target", ["3", 1.0])
def test_target_is_a_round(tickets, network, validation, target):
    with pytest.raises(TypeError, match="the number of a round is needed"):
        pool(tickets, target, model=network, validation=validation, **CHOICES)
    for number in (np.int64(1), torch.tensor(1)):
        options = {"statistics": "interpolate", "candidates": 0, "progress": False}
        assert pool(tickets, number, model=network, validation=validation, **options).round == 1


def test_tickets_from_a_directory_and_from_state_dicts(tickets, network, validation, calibration, tmp_path):
    options = {"model": network, "validation": validation, "calibration": calibration, **CHOICES}
    expected = pool(tickets, 3, **options)
    tickets.save(tmp_path / "tickets")
    assert same_network(pool(tmp_path, 3, **options), expected)
    assert same_network(pool([t.state_dict for t in tickets], 3, **options), expected)


def test_bad_arguments_are_named(tickets, network, validation, calibration):
    options = {"model": network, "validation": validation, "calibration": calibration, "progress": False}
    for bad, message in (
        ({"target": 5}, "target is round 5; there are tickets of rounds 0 to 4"),
        ({"target": -1}, "target is round -1"),
        ({"coefficients": (0.5, 1.5)}, "coefficients holds 1.5"),
        ({"coefficients": (math.nan,)}, "coefficients holds nan"),
        ({"coefficients": ()}, "coefficients is empty"),
        ({"method": "soup"}, "method is 'soup'; it must be one of interpolation, average, swa, ema"),
        ({"search": "quick"}, "search is 'quick'"),
        ({"prune": "never"}, "prune is 'never'"),
        ({"backend": "tpu"}, "backend is 'tpu'"),
        ({"candidates": -1}, "candidates is -1"),
        ({"error": 0.0}, "error is 0.0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"search": "racing", "evaluate": lambda model: 0.0, "validation": None}, "search is 'racing', which counts"),
        ({"search": "racing", "criterion": "loss"}, "with criterion='loss' it is not possible"),
        ({"criterion": "error"}, "criterion is 'error'; it must be one of accuracy, loss"),
        ({"model": nn.Linear(3, 3)}, "another network than the model: '0.weight' is missing"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            pool(tickets, **{"target": 0, **options, **bad})


def test_the_users_model_is_not_changed(tickets, network, validation, calibration):
    before = copy.deepcopy(network.state_dict())
    network.train()
    pool(tickets, 3, model=network, validation=validation, calibration=calibration, **CHOICES)
    assert network.training and all(torch.equal(before[n], t) for n, t in network.state_dict().items())
