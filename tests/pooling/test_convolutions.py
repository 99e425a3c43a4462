"""What a GPU's layers are, on a CPU; cuDNN's functions are composed of PyTorch's."""

import copy

import pytest
import torch
from torch import nn

from lpk import models
from lpk.pooling.convolutions import Fused, LaidOut
from lpk.pooling.eager import Eager, FoldedOnGpu
from tests.conftest import make_network
from tests.networks.random_statistics import with_random_statistics
from tests.pooling.recording import like_a_gpu


def fused(network):
    return sum(isinstance(module, Fused) for module in network.modules())


def folded_for_gpu(monkeypatch, network, inputs, autocast=None):
    """A network folded for a GPU; it must compute what the network does, also after that changed."""
    like_a_gpu(monkeypatch)
    made = FoldedOnGpu(network, autocast)
    for seed in (1, 2):
        with_random_statistics(network, seed=seed)
        made.update()
        with made.laid_out.used(), torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            result = made.network(inputs)
        error = 1e-4 if autocast is None else 0.1
        torch.testing.assert_close(result.float(), network(inputs), rtol=error, atol=error * float(result.abs().max()))
    return made


@pytest.mark.parametrize(
    ("name", "convolutions"), [("resnet18", 17), ("vgg16", 13), ("small-resnet", 7), ("imagenet-resnet18", 17)]
)
def test_networks_by_name(monkeypatch, name, convolutions):
    """Every convolution but those of shortcuts has a ReLU behind it, or an addition and a ReLU."""
    shape = (3, 64, 64) if name.startswith("imagenet") else (3, 32, 32)
    network = with_random_statistics(models.build(name, classes=10, shape=shape))
    with torch.no_grad():
        made = folded_for_gpu(monkeypatch, network, torch.randn(2, *shape))
    assert fused(made.network) == convolutions
    weights = [pair.folded.weight for pair in made.pairs]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@torch.no_grad()
def test_autocast_s_dtype(monkeypatch):
    network = with_random_statistics(models.build("small-resnet", classes=10, shape=(3, 32, 32)))
    made = folded_for_gpu(monkeypatch, network, torch.randn(4, 3, 32, 32), torch.bfloat16)
    tensors = made.tensors()
    assert len(tensors) == 2 * len(made) + 1  # the last layer's weight
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


class Block(nn.Module):
    """A convolution with BatchNorm, and something behind them."""

    def __init__(self, behind):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.behind = behind

    def forward(self, x):
        return self.behind(self, self.bn(self.conv(x)), x)


def added_in_place(block, y, x):
    y += x
    return block.relu(y)


def added_to_the_input(block, y, x):
    x = x + 0
    x += y
    return block.relu(x) + x


def method(block, y, x):
    return y.add(x).relu_()


def shortcut(block, y, x):
    return torch.relu(y + block.bn2(block.other(x)))


def read_twice(block, y, x):
    return torch.relu(y) + y


def sum_read_twice(block, y, x):
    y = y + x
    return torch.relu(y) + y


@pytest.mark.parametrize(
    ("behind", "count"),
    [
        (added_in_place, 1),
        (method, 1),
        (shortcut, 1),
        (lambda block, y, x: nn.functional.relu(y, inplace=True), 1),
        (lambda block, y, x: block.relu(torch.add(x, y)), 1),
        (lambda block, y, x: torch.relu(torch.add(y, x, alpha=2)), 0),
        (lambda block, y, x: torch.relu(y + 1), 0),
        (lambda block, y, x: torch.relu(y + y), 0),
        (lambda block, y, x: torch.sigmoid(y), 0),
        (lambda block, y, x: y, 0),
        (added_to_the_input, 0),
        (read_twice, 0),
        (sum_read_twice, 0),
    ],
)
@torch.no_grad()
def test_what_stands_behind_a_convolution(monkeypatch, behind, count):
    network = with_random_statistics(Block(behind))
    assert fused(folded_for_gpu(monkeypatch, network, torch.randn(3, 4, 5, 5)).network) == count


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Linear(6, 4),
    ],
)
@torch.no_grad()
def test_layers_that_are_not_fused(monkeypatch, layer):
    linear = isinstance(layer, nn.Linear)
    network = with_random_statistics(nn.Sequential(layer, (nn.BatchNorm1d if linear else nn.BatchNorm2d)(4), nn.ReLU()))
    inputs = torch.randn(5, 6) if linear else torch.randn(2, 4, 6, 6)
    made = folded_for_gpu(monkeypatch, network, inputs)
    assert len(made) == 1 and fused(made.network) == 0


@torch.no_grad()
def test_weights_are_laid_out_once_for_each_network():
    network, x = with_random_statistics(make_network()), torch.randn(3, 1, 6, 6)
    network[8].weight = nn.Parameter(network[8].weight.detach())
    copies = LaidOut(network, None)
    assert len(copies) == 1  # of one input channel, and of a linear layer, both layouts are the same
    expected, own = network(x), network[3].weight
    copies.write()
    with copies.used():
        torch.testing.assert_close(network(x), expected)
        assert network[3].weight.is_contiguous(memory_format=torch.channels_last)
        own.mul_(2)
        torch.testing.assert_close(network(x), expected)
    assert network[3].weight is own
    with pytest.raises(ZeroDivisionError), copies.used():
        raise ZeroDivisionError
    assert network[3].weight is own
    halves = LaidOut(network, torch.bfloat16)
    halves.write()
    assert len(halves) == 3 and all(
        torch.equal(a, b.bfloat16()) for a, b in zip(halves.copies, (network[i].weight for i in (0, 3, 8)), strict=True)
    )


@torch.no_grad()
def test_tied_weights_are_laid_out_once():
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)).eval()
    network[1].weight = network[0].weight
    copies = LaidOut(network, None)
    assert len(copies) == 2 and len(copies.copies) == 1


@torch.no_grad()
def test_a_gpu_without_fused_convolutions_computes_the_same(monkeypatch):
    """Where cuDNN refuses, the folded network is the one without its functions' layers."""
    like_a_gpu(monkeypatch)

    def refuse(*arguments):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    network, x = with_random_statistics(make_network()), torch.randn(3, 1, 6, 6)
    eager = Eager(copy.deepcopy(network))
    torch.testing.assert_close(eager(x), network(x), rtol=1e-4, atol=1e-4)
    assert eager.folded is not None and fused(eager.folded.network) == 0


class OwnPrecision(nn.Module):
    """Its last layer computes in float32 whatever autocast says."""

    def __init__(self):
        super().__init__()
        self.body, self.last = make_network(), nn.Linear(3, 3)

    def forward(self, x):
        x = self.body(x)
        with torch.autocast("cpu", enabled=False):
            return self.last(x.float())


@torch.no_grad()
def test_a_forward_may_turn_autocast_off(monkeypatch):
    like_a_gpu(monkeypatch)
    network, x = with_random_statistics(OwnPrecision()).requires_grad_(False), torch.randn(8, 1, 6, 6)
    eager = Eager(copy.deepcopy(network), torch.bfloat16)
    torch.testing.assert_close(eager(x), network(x), rtol=0.1, atol=0.1)
    assert eager.laid_out is None and len(eager.measure(x)) == 2


@torch.no_grad()
def test_a_wrong_fused_convolution_is_noticed(monkeypatch):
    like_a_gpu(monkeypatch)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", lambda x, w, b, *geometry: torch.conv2d(x, w, b, *geometry))
    network, x = with_random_statistics(make_network()), torch.randn(3, 1, 6, 6)
    eager = Eager(copy.deepcopy(network))
    torch.testing.assert_close(eager(x), network(x), rtol=1e-4, atol=1e-4)
    assert fused(eager.folded.network) == 0


@torch.no_grad()
def test_algorithms_are_not_chosen_by_the_clock(monkeypatch):
    like_a_gpu(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []
    network = with_random_statistics(make_network())
    network[0].register_forward_hook(lambda *given: seen.append(torch.backends.cudnn.benchmark))
    Eager(network)(torch.randn(2, 1, 6, 6))
    assert set(seen) == {False} and torch.backends.cudnn.benchmark
