import copy
import re

import pytest
import torch
from torch import nn

from tests.conftest import make_network, sizes_as_arguments
from tests.pooling.evaluators import count, make_evaluator


class Sigmoid(nn.Module):
    """A network with an operation that the engine doesn't have."""

    def __init__(self):
        super().__init__()
        self.body = make_network()

    def forward(self, x):
        return self.body(torch.sigmoid(x))


class Viewed(Sigmoid):
    """A network that asks for sizes, as CIFAR's networks do before their last layer."""

    def forward(self, x):
        for layer in list(self.body)[:6]:
            x = layer(x)
        x = nn.functional.avg_pool2d(x, x.size(3))
        return self.body[8](x.view(x.size(0), -1))


def hooked():
    network = make_network()
    network.register_forward_hook(lambda module, inputs, output: 0.99 * output)
    return network


class Untraceable(Sigmoid):
    def forward(self, x):
        return self.body(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("wanted", "kind", "expected"),
    [
        ("auto", make_network, "sparse"),
        ("sparse", make_network, "sparse"),
        ("torch", make_network, "torch"),
        pytest.param("auto", Viewed, "sparse", marks=sizes_as_arguments),
        ("auto", Sigmoid, "torch"),
        ("sparse", Sigmoid, "sparse"),
        ("auto", Untraceable, "torch"),
        ("auto", hooked, "torch"),
        ("auto", lambda: make_network().bfloat16(), "torch"),
    ],
)
def test_backend(validation, calibration, wanted, kind, expected):
    network = kind()
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=50, backend=wanted)
    made.calibrate()
    calibrated = copy.deepcopy(made.flat.model)
    assert made.backend == expected
    assert abs(made.score().value - count(calibrated.float(), *validation)) <= (4 if kind is not make_network else 0)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (Untraceable, {}, "Untraceable can't be traced"),
        (hooked, {}, "Sequential has the forward hook hooked.<locals>.<lambda>"),
        (make_network, {"autocast": torch.bfloat16}, "it has no autocast"),
        (lambda: make_network().half(), {}, "0.weight is torch.float16"),
    ],
)
def test_an_impossible_backend_is_an_error(validation, kind, options, reason):
    made = make_evaluator(kind(), validation=validation, statistics="leave", backend="sparse", **options)
    with pytest.raises(ValueError, match=f"backend is 'sparse', which is not possible here: .*{re.escape(reason)}"):
        made.score()
