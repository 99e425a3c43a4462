"""A layer that computes something else than its class does runs as it is."""

import functools
import types

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.nn import qat
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lpk
from lpk.networks.plain import is_plain
from lpk.pooling.eager import Eager
from lpk.sparse.network import Network
from lpk.sparse.steps import Affine, Convolve
from tests.networks.random_statistics import with_random_statistics


def masked(layer, function):
    """As SNIP's code does."""
    layer.weight_mask = nn.Parameter((torch.rand_like(layer.weight) < 0.5).float(), requires_grad=False)
    layer.forward = types.MethodType(function, layer)


def masked_layers(network):
    masked(network[0], lambda self, x: F.conv2d(x, self.weight * self.weight_mask, self.bias, padding=self.padding))
    masked(network[6], lambda self, x: F.linear(x, self.weight * self.weight_mask, self.bias))


def hooked(network):
    """As accelerate does: a forward that calls the old one."""
    for layer in network:
        layer.forward = functools.partial(lambda old, x: old(x) + 0.1, layer.forward)


def replaced_under_another_method(network):
    network[0]._conv_forward = types.MethodType(lambda self, x, w, b: F.conv2d(x.sin(), w, b, padding=1), network[0])


def doubled_statistics(network):
    network[1].forward = types.MethodType(lambda self, x: 2 * type(self).forward(self, x), network[1])


def quantized(network):
    for i, kind in ((0, qat.Conv2d), (6, qat.Linear)):
        network[i].qconfig = quantization.get_default_qat_qconfig("fbgemm")
        network[i] = kind.from_float(network[i]).eval()
        network[i].weight_fake_quant(network[i].weight)
        network[i].weight_fake_quant.disable_observer()


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Ending(nn.Linear):
    """A stranger's layer."""

    def forward(self, x):
        return super().forward(x) + 1


class Statistics(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).tanh()


def parametrized(network):
    for i in (0, 6):
        parametrize.register_parametrization(network[i], "weight", Halved())


def subclasses(network):
    network[1], network[6] = with_random_statistics(Statistics(4)), Ending(4, 5)


def fewer_filters(network):
    """The layer's attributes are not those of its weights any more."""
    network[0].weight, network[0].bias = (nn.Parameter(part[:2]) for part in (network[0].weight, network[0].bias))
    network[1] = nn.Identity()
    network[6].weight = nn.Parameter(network[6].weight[:, :2])


def other_bounds(network):
    network[2] = nn.ReLU6()
    network[2].max_val = 0.5


def always_dropping(network):
    network[5].train()
    network[5].forward = lambda x: x[:, [1, 0, 3, 2]]


def another_forward_of_the_model(network):
    network.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, network)


def another_forward_of_a_container(network):
    inner = nn.Sequential(network[2], network[3])
    inner.forward = types.MethodType(lambda self, x: type(self).forward(self, x.abs()), inner)
    network[2], network[3] = inner, nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        masked_layers,
        hooked,
        replaced_under_another_method,
        doubled_statistics,
        quantized,
        parametrized,
        subclasses,
        fewer_filters,
        other_bounds,
        always_dropping,
        another_forward_of_the_model,
        another_forward_of_a_container,
    ],
)
def test_what_computes_something_else_runs_as_it_is(change):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4, 5),
    )
    with_random_statistics(network)
    network[6].weight[:, 1] = network[0].weight[1] = 0.0  # so that the engine packs what remains
    change(network)
    inputs = torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        expected = network(inputs)
        for made in (lpk.sparsify(network), Network(network, (3, 8, 8)), Eager(network)):
            torch.testing.assert_close(made(inputs), expected, rtol=1e-4, atol=1e-5)


def test_class_whose_forward_was_replaced(monkeypatch):
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: F.conv2d(x, self.weight**2, self.bias))
    network, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(lpk.sparsify(network)(inputs), network(inputs))


def test_plain_layers_stay_on_the_engine():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    network = nn.Sequential(*layers).eval()
    assert Network(network, (3, 8, 8)).whole
    assert all(is_plain(layer, type(layer)) for layer in layers)


class Reading(nn.Module):
    """One layer's forward reads another's weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.forward = types.MethodType(lambda b, x: F.linear(x, b.other.a.weight), self.b)
        vars(self.b)["other"] = self  # no module of its own

    def forward(self, x):
        return self.b(self.a(x).relu()).relu()


def test_weights_that_a_replaced_forward_reads_are_there():
    torch.manual_seed(0)
    network, inputs = Reading().eval().requires_grad_(False), torch.randn(3, 6)
    network.a.weight[:, 1] = 0.0
    torch.testing.assert_close(lpk.sparsify(network)(inputs), network(inputs))


@pytest.mark.parametrize(
    "replaced",
    [
        lambda layer: lambda x: F.linear(x, layer.weight * 2),
        lambda layer: functools.partial(lambda x, weight=layer.weight: F.linear(x, weight)),
    ],
)
def test_functions_that_a_copy_of_the_model_would_share_are_refused(replaced):
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))).eval()
    network[1][0].forward = replaced(network[1][0])
    with pytest.raises(ValueError, match=r"1\.0\.forward was replaced .* types.MethodType"):
        lpk.sparsify(network)


def test_functions_that_refer_to_another_network_are_copied():
    teacher, network, inputs = nn.Linear(4, 4).eval(), nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(3, 4)
    network[0].forward = lambda x: teacher(x)
    with torch.no_grad():
        torch.testing.assert_close(lpk.sparsify(network)(inputs), teacher(inputs))


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x, scale=2.0, mask=None, *more, flag=False, **others):
        if mask is not None or flag or more or others:
            return x
        return self.conv(x * scale)


@pytest.mark.parametrize("fallback", ["error", "torch"])
def test_arguments_with_defaults(fallback):
    network, inputs = Defaults().eval().requires_grad_(False), torch.randn(3, 3, 8, 8)
    made = lpk.sparsify(network, fallback=fallback)
    torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)
    (planned,) = made._networks.values()
    assert planned is not None and any(isinstance(step, Convolve | Affine) for step in planned.plan.steps)


def test_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, y):
            return self.conv(x + y)

    network, inputs = Two().eval().requires_grad_(False), torch.randn(3, 3, 8, 8)
    made = lpk.sparsify(network)
    torch.testing.assert_close(made(inputs, y=inputs), network(inputs, inputs), rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=r"Two.forward: missing a required argument: 'y'"):
        made(inputs)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.bn(self.conv(x)) * (self.scale * 2)


@pytest.mark.parametrize("kind", [Eager, lambda network: Network(network, (3, 8, 8))])
def test_buffers_that_change_are_read_again(kind):
    network, inputs = with_random_statistics(Scaled()), torch.randn(3, 3, 8, 8)
    made = kind(network)
    made(inputs)
    network.scale.fill_(5.0)
    made.changed()
    torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)
