"""What a model makes of the engine's values at its end: PyTorch computes it, for the whole batch."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn

import lpk
from lpk import sparse
from lpk.sparse.network import Network
from tests.conftest import sizes_as_arguments
from tests.networks.random_statistics import with_random_statistics

Pair = namedtuple("Pair", ["features", "logits"])


class Output(OrderedDict):
    """As some libraries have it, with attributes."""


@dataclass
class ModelOutput(OrderedDict):
    """As transformers has it: a dict of those of its fields that are not None."""

    logits: torch.Tensor
    hidden: tuple | None = None

    def __post_init__(self):
        self.update({name: value for name, value in vars(self).items() if value is not None})


class Ending(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 36, 1)
        self.bn = nn.BatchNorm1d(4)
        self.end = end

    def forward(self, x):
        return self.end(self, x, self.conv(x))


def vars_of(value):
    return getattr(value, "__dict__", {})


def same(got, expected):
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    elif isinstance(expected, dict):
        assert (
            type(got) is type(expected)
            and list(got) == list(expected)
            and list(vars_of(got)) == list(vars_of(expected))
        )
        for key in expected:
            same(got[key], expected[key])
    elif isinstance(expected, tuple | list):
        assert type(got) is type(expected)
        for ours, theirs in zip(got, expected, strict=True):
            same(ours, theirs)
    else:
        assert got == expected


@pytest.mark.parametrize("batch", [1, 3, 16, 150])
@pytest.mark.parametrize(
    "end",
    [
        lambda m, x, y: m.linear(y.flatten(1)).squeeze(1),
        lambda m, x, y: m.bn(y.flatten(2)),
        lambda m, x, y: y.argmax(1),
        lambda m, x, y: y.mean(),
        lambda m, x, y: y.flatten(1).softmax(0).unsqueeze(2),
        lambda m, x, y: (y, y.relu(), x),
        lambda m, x, y: (x,),
        lambda m, x, y: [y.relu(), {"images": [x, (3, None)]}],
        lambda m, x, y: OrderedDict(out=y.relu(), aux=m.bn(y.flatten(2))),
        lambda m, x, y: (OrderedDict(a=y, b={"c": [OrderedDict(d=y.mean(1))]}), 1),
        lambda m, x, y: ModelOutput(y.mean((2, 3)), hidden=(x, OrderedDict(y=y))),
        lambda m, x, y: Pair(y.relu(), m.linear(y.flatten(1))),
        pytest.param(lambda m, x, y: {"out": y, "count": x.shape[0], "size": y.shape}, marks=sizes_as_arguments),
    ],
)
def test_a_model_returns_what_it_likes(end, batch):
    torch.manual_seed(0)
    network, inputs = with_random_statistics(Ending(end)), torch.randn(batch, 3, 6, 6)
    made = lpk.sparsify(network)
    with torch.no_grad():
        same(made(inputs), network(inputs))


def test_no_images():
    made = lpk.sparsify(Ending(lambda m, x, y: (y, m.linear(y.flatten(1)).squeeze(1))))
    assert [part.shape for part in made(torch.zeros(0, 3, 6, 6))] == [(0, 4, 6, 6), (0,)]


def test_segmentation():
    torch.manual_seed(0)
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    network = with_random_statistics(build(weights=None, weights_backbone=None, num_classes=5))
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got, expected = lpk.sparsify(network)(inputs)["out"], network(inputs)["out"]
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_values_that_are_returned_are_not_written_over():
    """Neither by later steps nor by the next call."""
    torch.manual_seed(0)
    network = Ending(lambda m, x, y: (y, m.conv(y[:, :3]), x)).eval()
    made, inputs = lpk.sparsify(network), torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        first, expected = made(inputs), network(inputs)
        made(torch.randn(5, 3, 6, 6))
    same(first, expected)


def test_pruned_weights_that_the_end_reads_are_there():
    torch.manual_seed(0)
    network = Ending(lambda m, x, y: (y, m.linear(y.flatten(2).repeat(1, 1, 4))))
    with torch.no_grad():
        for parameter in network.eval().parameters():
            parameter[torch.rand_like(parameter) < 0.5] = 0.0
    inputs = torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        same(lpk.sparsify(network)(inputs), network(inputs))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda m, x, y: Output(out=y), "type Output, which torch.fx does not keep"),
        (lambda m, x, y: m.linear.weight, "is not computed from its input"),
    ],
)
def test_what_is_not_supported_is_named(end, message):
    with pytest.raises(sparse.NotSupported, match=message):
        lpk.sparsify(Ending(end))(torch.randn(3, 3, 6, 6))


def test_a_model_with_an_end_of_its_own_is_not_measured_on_the_engine():
    network = Network(with_random_statistics(Ending(lambda m, x, y: m.bn(y.exp().flatten(2)))), (3, 6, 6))
    assert not network.whole
    with pytest.raises(sparse.NotSupported, match="BatchNorm layer runs in PyTorch"):
        network.measure(torch.randn(5, 3, 6, 6))
