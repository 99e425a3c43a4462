import copy

import pytest
import torch
import torchvision
from torch import nn

from lpk import models
from lpk.export import _prepared
from lpk.networks.flat import Layout
from lpk.networks.folding import Folded
from lpk.pooling.eager import Eager
from lpk.pooling.evaluate import Evaluator
from tests.conftest import make_images, make_network
from tests.networks.random_statistics import with_random_statistics


def batchnorms(network):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def same(network, inputs, folded_count):
    folded = Folded(network)
    assert len(folded) == folded_count
    torch.testing.assert_close(folded.network(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    with_random_statistics(network, seed=1)
    folded.update()
    torch.testing.assert_close(folded.network(inputs), network(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "small-resnet", "imagenet-resnet18"])
def test_networks_by_name(name):
    shape = (3, 64, 64) if name.startswith("imagenet") else (3, 32, 32)
    network = with_random_statistics(models.build(name, classes=10, shape=shape))
    same(network, torch.randn(2, *shape), folded_count=batchnorms(network))


def test_networks_are_folded_under_autocast():
    """Its rounding is coarser than what tells two networks apart in float32."""
    torch.manual_seed(0)
    network = models.build("vgg16", classes=10, shape=(3, 32, 32))
    inputs = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        network(inputs)
    eager = Eager(network.eval().requires_grad_(False), torch.bfloat16)
    eager(inputs)
    assert eager.folded is not None


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_the_first_parameter_does_not_tell_the_dtype_of_inputs(dtype):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
            self.last = nn.Linear(4, 2).half()

        def forward(self, x):
            return self.last(x)

    network, x = Network().eval().requires_grad_(False), torch.linspace(0.0, 1.0, 12).view(3, 4)
    assert torch.equal(Eager(network)(x), network(x.half()))
    _, (inputs,), _ = _prepared(network, (4,))
    assert inputs.dtype == torch.float16


def test_mobilenet_has_grouped_convolutions():
    network = with_random_statistics(torchvision.models.mobilenet_v2(num_classes=7))
    same(network, torch.randn(2, 3, 64, 64), folded_count=batchnorms(network))


@pytest.mark.parametrize(
    ("layer", "batchnorm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (5, 3, 9)),
        (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), (5, 4, 9, 9)),
        (nn.Conv3d(1, 4, 2, bias=False), nn.BatchNorm3d(4), (5, 1, 4, 4, 4)),
        (nn.Linear(7, 4), nn.BatchNorm1d(4), (5, 7)),
    ],
)
def test_layers(layer, batchnorm, shape):
    network = with_random_statistics(nn.Sequential(layer, batchnorm, nn.ReLU()))
    same(network, torch.randn(shape), folded_count=1)


class Branching(nn.Module):
    """Its convolution's output is read twice: once without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + x


class Shared(nn.Module):
    """One convolution with two BatchNorm layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x))))


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (Branching(), 1),
        (Shared(), 2),
        (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)), 2),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), 2),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), 2),
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3)), 2),
    ],
)
def test_what_must_not_be_folded_is_left(network, channels):
    same(with_random_statistics(network), torch.randn(5, channels, 6, 6), folded_count=0)


def test_hooks_are_kept():
    network = with_random_statistics(make_network())
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    same(network, torch.randn(2, 1, 6, 6), folded_count=1)


def test_hooks_of_the_model_itself_are_kept():
    network, inputs = with_random_statistics(make_network()), torch.randn(2, 1, 6, 6)
    network.register_forward_hook(lambda module, inputs, output: 0.999 * output)
    torch.testing.assert_close(Eager(network)(inputs), network(inputs), rtol=1e-5, atol=1e-5)


def test_global_hooks_are_kept():
    network, inputs = with_random_statistics(make_network()), torch.randn(2, 1, 6, 6)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 0.999 * output)
    try:
        torch.testing.assert_close(Eager(network)(inputs), network(inputs), rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()


class DynamicControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = make_network()

    def forward(self, x):
        return self.layers(x if x.sum() > 0 else -x)


class RowsAsChannels(nn.Module):
    """BatchNorm1d after a linear layer, but over another dimension than the layer's outputs, of the same size."""

    def __init__(self):
        super().__init__()
        self.linear, self.bn, self.out = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(36, 3)

    def forward(self, x):
        return self.out(self.bn(self.linear(x.squeeze(1))).flatten(1))


@pytest.mark.parametrize(
    ("kind", "folds"), [(DynamicControlFlow, False), (RowsAsChannels, False), (make_network, True)]
)
def test_only_what_computes_the_same_is_folded(kind, folds):
    network = with_random_statistics(kind())
    images, labels = make_images(100, seed=3)
    layout = Layout.of_model(network)
    made = Evaluator(network, layout, validation=(images, labels), statistics="leave", backend="torch")
    made.flat.load(layout.flatten(network.state_dict()))
    expected = copy.deepcopy(network)(images).argmax(1) == labels
    assert made.score().value == int(expected.sum()) and made.backend == "torch"
    assert (made._chosen.folded is not None) == folds
