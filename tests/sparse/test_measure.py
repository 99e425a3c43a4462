"""BatchNorm's statistics as the engine measures them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lpk import models, sparse
from lpk.sparse.network import Network
from tests.sparse.networks import pruned, same


def test_measure_gives_the_statistics_of_update_bn():
    torch.manual_seed(0)
    network = pruned(models.build("resnet18", classes=10, shape=(3, 16, 16)), 0.3)
    inputs, expected = torch.randn(37, 3, 16, 16), copy.deepcopy(network)
    update_bn([inputs], expected)
    made = Network(network, (3, 16, 16))
    made.measure(inputs)
    for (name, ours), theirs in zip(network.named_buffers(), expected.buffers(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_statistics_of_pixels_in_a_row():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4), nn.Flatten()).eval()
    inputs, expected = torch.randn(5, 3, 8, 8), copy.deepcopy(network)
    update_bn([inputs], expected)
    Network(network, (3, 8, 8)).measure(inputs)
    torch.testing.assert_close(network[2].running_var, expected[2].running_var)
    torch.testing.assert_close(network[2].running_mean, expected[2].running_mean)


def test_statistics_that_are_not_the_engines_are_not_measured():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.BatchNorm2d(4), nn.Flatten()).eval()
    same(network, torch.randn(5, 3, 8, 8))
    with pytest.raises(sparse.NotSupported, match="BatchNorm layer runs in PyTorch"):
        Network(network, (3, 8, 8)).measure(torch.randn(5, 3, 8, 8))
