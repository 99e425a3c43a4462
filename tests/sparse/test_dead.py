"""Dead weights are left out, and the network computes what it did."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lpk import models
from lpk.sparse.dead import live_windows, without_dead
from lpk.sparse.network import Network
from lpk.sparse.plan import trace
from tests.networks.random_statistics import with_random_statistics
from tests.sparse.networks import pruned, same


def live_weights(plan):
    return {step: without_dead(step.layer.weight.detach(), windows) for step, windows in live_windows(plan).items()}


class Chain(nn.Module):
    """Three convolutions; channel 0 of the first is always zero, nobody reads channel 1 of the second."""

    def __init__(self, bias):
        super().__init__()
        self.first, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.third = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        with_random_statistics(self)
        with torch.no_grad():
            self.first.weight[0] = 0
            self.first.bias[0] = 0
            self.bn.running_mean[0] = 0
            self.bn.bias[0] = bias
            self.third.weight[:, 1] = 0

    def forward(self, x):
        return self.third(F.relu(self.second(F.relu(self.bn(self.first(x))))))


@pytest.mark.parametrize(("bias", "zero"), [(-0.5, True), (0.0, True), (0.5, False)])
def test_what_is_dead(bias, zero):
    """A filter without weights is zero behind ReLU unless BatchNorm lifts it; at the border that would show."""
    torch.manual_seed(0)
    network = Chain(bias).eval()
    plan = trace(network, (2, 5, 5))
    first, second, third = live_weights(plan).values()
    read = torch.tensor([True, False, True, True])
    assert torch.equal(first, network.first.weight) and torch.equal(third, network.third.weight)
    assert not second[~read].any() and torch.equal(second[read, 1:], network.second.weight[read, 1:])
    assert bool((second[read, 0] == 0).all()) == zero
    same(network, torch.randn(3, 2, 5, 5))


def test_what_batchnorm_lifts_is_alive_again():
    torch.manual_seed(0)
    model, inputs = Chain(-0.5).eval(), torch.randn(3, 2, 5, 5)
    network = Network(model, (2, 5, 5), dead=False)
    network(inputs)
    with torch.no_grad():
        model.bn.bias[0] = 0.5
        network.changed(weights=False)
        torch.testing.assert_close(network(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_what_nobody_reads_is_dead_through_additions_pools_and_flattening():
    torch.manual_seed(0)
    a, b, linear = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Linear(12, 2)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.linear = a, b, linear

        def forward(self, x):
            return self.linear(torch.flatten(F.max_pool2d(self.a(x) + self.b(x), 2), 1))

    network = Branches().eval()
    linear.weight.data[:, 4:8] = 0  # channel 1
    for weight in list(live_weights(trace(network, (2, 4, 4))).values())[:2]:
        assert not weight[1].any() and weight[[0, 2]].all()
    same(network, torch.randn(3, 2, 4, 4))


@pytest.mark.parametrize("density", [0.001, 0.004])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "small-resnet"])
def test_networks_with_hardly_any_weights(name, density):
    torch.manual_seed(0)
    network = pruned(models.build(name, classes=10, shape=(3, 32, 32)), density)
    same(network, torch.randn(3, 3, 32, 32))
    remaining = sum(int(weight.count_nonzero()) for weight in live_weights(trace(network, (3, 32, 32))).values())
    assert remaining < sum(int(p.count_nonzero()) for p in network.parameters() if p.dim() > 1)


def test_grouped_convolutions():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()).eval()
    network[0].weight.data[1] = 0
    network[1].weight.data[:, :, 0, 0] = 0
    _, second = live_weights(trace(network, (4, 5, 5))).values()
    assert not second[:3, 1].any() and second[3:, 1, 1:].all() and second[:3, 0, 1:].all()
    same(network, torch.randn(2, 4, 5, 5))
