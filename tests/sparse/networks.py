"""Networks that the engine is tried on, and whether it computes what they compute."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from lpk import ops, sparse
from lpk.networks.flat import Layout
from tests.conftest import make_network
from tests.networks.random_statistics import with_random_statistics


def pruned(network, density):
    """The network with that share of its prunable weights, and BatchNorm that does something."""
    layout = Layout.of_model(network)
    flat = layout.flatten(network.state_dict())
    ops.magnitude_prune(flat.weights, round(density * layout.n), out=flat.weights)
    network.load_state_dict(layout.unflatten(flat))
    return with_random_statistics(network)


def same(network, inputs, relative=1e-4):
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(inputs.double())
        got = sparse.sparsify(network)(inputs)
    assert got.shape == expected.shape
    assert not len(got) or float((got - expected).abs().max()) <= relative * float(expected.abs().max())


class Zoo(nn.Module):
    """What real forward functions do: functions and methods, in-place operations, values read several times."""

    def __init__(self, forward, channels=4):
        super().__init__()
        self.conv, self.bn, self.second = (
            nn.Conv2d(3, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=2),
        )
        self.scale = nn.Parameter(torch.rand(1))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


class Shared(nn.Module):
    """Its weights are read by the engine and by PyTorch, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.tied = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.tied.weight = self.conv.weight
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        x = F.conv2d(self.conv(x), self.reflecting.weight, padding=1)
        return F.linear(self.linear(self.tied(self.reflecting(x))), self.linear.weight)


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = make_network()

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)
