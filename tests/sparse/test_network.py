"""The engine computes what PyTorch computes, whatever the network does, or says what it can't run."""

import copy
from functools import partial

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import lpk
from lpk import models, ops, sparse
from lpk.networks.flat import Layout
from lpk.sparse.network import Network
from tests.conftest import sizes_as_arguments
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


@pytest.mark.parametrize(("density", "batch"), [(1.0, 16), (0.2, 5), (0.2, 1), (0.02, 20)])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "small-resnet", "imagenet-resnet18", "mlp"])
def test_networks_by_name(name, density, batch):
    torch.manual_seed(0)
    shape = (3, 64, 64) if name.startswith("imagenet") else (3, 32, 32)
    same(pruned(models.build(name, classes=10, shape=shape), density), torch.randn(batch, *shape))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name, batch):
    torch.manual_seed(0)
    network = pruned(getattr(torchvision.models, name)(num_classes=10), 0.3)
    same(network, torch.randn(batch, 3, 75, 56))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 8, 9, 15, 16, 17, 40, 100])
def test_batch_sizes(batch):
    torch.manual_seed(0)
    network = pruned(models.build("small-resnet", classes=10, shape=(1, 12, 10)), 0.3)
    same(network, torch.randn(batch, 1, 12, 10))


def test_the_same_bits_for_any_number_of_threads():
    torch.manual_seed(0)
    network = sparse.sparsify(pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3))
    inputs, outputs = torch.randn(50, 3, 16, 16), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs.append(network(inputs))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_channels_last_inputs():
    torch.manual_seed(0)
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    inputs = torch.randn(5, 3, 16, 16)
    made = sparse.sparsify(network)
    assert torch.equal(made(inputs), made(inputs.contiguous(memory_format=torch.channels_last)))


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


def test_statistics_that_are_not_the_engines_are_not_measured():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4), nn.Flatten()).eval()
    same(network, torch.randn(5, 3, 8, 8))
    with pytest.raises(sparse.NotSupported, match="BatchNorm layer runs in PyTorch"):
        Network(network, (3, 8, 8)).measure(torch.randn(5, 3, 8, 8))


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


def read_twice(m, x):
    x = m.conv(x)
    return F.relu(x) + x


def inplace_read_again(m, x):
    x = m.conv(x)
    y = F.relu(x, inplace=True)
    return m.second(y) + x


def both_sides(m, x):
    return torch.relu(m.bn(m.conv(x)) + m.second(m.conv(x)))


def added_in_place(m, x):
    y = m.conv(x)
    z = m.second(y)
    z += y
    return F.relu6(z) + y


def doubled(m, x):
    x = m.conv(x)
    return (x + x).relu()


def dropout_and_reads(m, x):
    x = m.conv(x)
    return F.relu(F.dropout(x, training=False)) + x


def batchnorm_first(m, x):
    return m.bn(F.relu(m.conv(x)))


def foreign_in_the_middle(m, x):
    return m.second(torch.sigmoid(m.conv(x)) * m.scale)


def concatenated(m, x):
    x = m.conv(x)
    return torch.cat((F.max_pool2d(x, 2), F.avg_pool2d(x, 2)), 1)


def pooled_by_functions(m, x):
    x = F.max_pool2d(m.conv(x), (3, 2), stride=2, padding=1, ceil_mode=True)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + F.avg_pool2d(x, 3, padding=1, stride=1)


def flattened(m, x):
    return torch.flatten(F.adaptive_avg_pool2d(m.conv(x), (4, 2)), 1)


def sliced(m, x):
    return m.second(m.conv(x)[:, :, ::2, 1:])


def broadcast(m, x):
    x = m.conv(x)
    return x + F.adaptive_avg_pool2d(x, 1)


def chunked(m, x):
    a, b = m.conv(x).chunk(2, 1)
    return torch.cat((b.relu(), torch.sigmoid(a)), 1)


def channels_shuffled(m, x):
    batch, channels, height, width = m.conv(x).size()
    x = m.conv(x).view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return m.second(x.reshape(batch, -1, height, width))


def weights_of_weights(m, x):
    weight = m.conv.weight - m.conv.weight.mean(dim=(1, 2, 3), keepdim=True)
    return m.second(F.conv2d(x, weight, m.conv.bias, padding=m.conv.weight.size(2) // 2))


def a_number_of_samples(m, x):
    x = m.conv(x)
    return m.second(x * x.size(0) + x.new_zeros(x.shape[0], 1, 1, 1))


def half_of_the_samples(m, x):
    """A number that two and three samples have in common."""
    return m.second(m.conv(x) * (x.size(0) // 2))


def as_many_channels_as_samples(m, x):
    """Two of each when the model is traced."""
    x = m.conv(x)[:, :2]
    return m.second(m.conv(torch.cat((x, x[:, :1]), 1)) + x.transpose(0, 1).mean((1, 2, 3))[0])


def samples_together(m, x):
    x = m.conv(x)
    return m.second(x - x.mean(0)) + F.batch_norm(x, None, None, training=True)


def compared(m, x):
    x = m.conv(x)
    large = x > x.flatten(2).mean(2)[:, :, None, None]
    return m.second(x.masked_fill(large & (x < 1), 0.5)) + large * 1.0


def changed_in_place(m, x):
    x = m.conv(x)
    y = torch.sigmoid(x)
    x.mul_(0.5)
    return m.second(F.hardswish(y, inplace=True)) + y + x


def only_read_before_it_is_changed(m, x):
    x = m.conv(x)
    return (x < 0) + F.relu6(x, inplace=True)


def of_three_dimensions(m, x):
    x = m.conv(x).flatten(2).transpose(1, 2)
    return F.softmax(x, 2).mean(1)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 20])
@pytest.mark.parametrize(
    "forward",
    [
        read_twice,
        inplace_read_again,
        both_sides,
        added_in_place,
        doubled,
        dropout_and_reads,
        batchnorm_first,
        foreign_in_the_middle,
        concatenated,
        pooled_by_functions,
        flattened,
        sliced,
        broadcast,
        chunked,
        channels_shuffled,
        pytest.param(weights_of_weights, marks=sizes_as_arguments),
        a_number_of_samples,
        half_of_the_samples,
        as_many_channels_as_samples,
        samples_together,
        compared,
        changed_in_place,
        only_read_before_it_is_changed,
        of_three_dimensions,
    ],
)
def test_what_forward_functions_do(forward, batch):
    torch.manual_seed(0)
    same(with_random_statistics(Zoo(forward)), torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x.softmax(0),
        lambda x: x.cumsum(0),
        lambda x: x.flip(0),
        lambda x: F.normalize(x, dim=0),
        lambda x: F.batch_norm(x, None, None, training=True),
    ],
)
def test_operations_over_samples_are_given_the_whole_batch(mixed):
    torch.manual_seed(0)
    same(with_random_statistics(Zoo(lambda m, x: m.second(mixed(m.bn(m.conv(x)))))), torch.randn(70, 3, 8, 8))


@pytest.mark.parametrize("forward", [foreign_in_the_middle, concatenated, broadcast, compared, of_three_dimensions])
def test_operations_of_each_sample_need_no_whole_batch(forward):
    network = Network(with_random_statistics(Zoo(forward)), (3, 8, 8))
    assert network.plan.foreign and not network.mixes


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.size()[0], x.size(1) * x.size(2) * x.size(3)),
        lambda x: x.reshape(x.shape[0], -1),
        pytest.param(lambda x: torch.reshape(x, (x.shape[0], -1)), marks=sizes_as_arguments),
        lambda x: x.view(-1, 16),
        lambda x: x.view([x.size(0), 16]),
        lambda x: x.flatten(start_dim=1),
        lambda x: torch.flatten(x, 1, 3),
    ],
)
def test_networks_that_ask_for_sizes_stay_whole(flatten):
    """How CIFAR's networks end. The engine runs all of them."""

    def forward(m, x):
        x = F.relu(m.bn(m.conv(x)))
        return flatten(F.avg_pool2d(m.second(x), 4))

    torch.manual_seed(0)
    network = with_random_statistics(Zoo(forward))
    assert Network(network, (3, 8, 8)).whole
    for batch in (1, 2, 5, 20):
        same(network, torch.randn(batch, 3, 8, 8))


@sizes_as_arguments
def test_pools_as_large_as_the_image_stay_whole():
    torch.manual_seed(0)
    network = with_random_statistics(Zoo(lambda m, x: F.avg_pool2d(m.second(m.conv(x)), x.size(3)).flatten(1)))
    assert Network(network, (3, 8, 8)).whole
    same(network, torch.randn(5, 3, 8, 8))


def test_a_view_that_is_no_flattening():
    torch.manual_seed(0)
    network = Zoo(lambda m, x: m.conv(x).view(x.size(0), 2, -1).sum(1)).eval()
    for batch in (2, 5, 20):
        same(network, torch.randn(batch, 3, 8, 8))


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(
    size=st.tuples(st.integers(5, 21), st.integers(5, 21)),
    layers=st.lists(
        st.tuples(
            st.sampled_from(["conv", "max", "average"]),
            st.integers(1, 4),  # kernel
            st.integers(1, 3),  # stride
            st.integers(0, 2),  # padding
            st.integers(1, 2),  # dilation
            st.booleans(),  # windows that reach beyond the image (ceil_mode)
            st.booleans(),  # ReLU
        ),
        min_size=1,
        max_size=4,
    ),
    batch=st.integers(1, 8),
)
def test_few_images(size, layers, batch):
    """Images are cut into patches wherever that comes out even, and put together again where not."""
    network, shape = nn.Sequential(), torch.Size([1, 3, *size])
    for kind, kernel, stride, padding, dilation, ceil, relu in layers:
        if kind == "conv":
            layer = nn.Conv2d(3, 3, kernel, stride, padding, dilation)
        elif kind == "max":
            layer = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), dilation, ceil_mode=ceil)
        else:
            layer = nn.AvgPool2d(kernel, stride, min(padding, kernel // 2), ceil_mode=ceil)
        try:
            outputs = layer(torch.zeros(shape))
        except RuntimeError:  # nothing is left of the image
            break
        if not outputs.isfinite().all():  # a window that sees nothing of the image
            break
        shape = outputs.shape
        network.append(layer)
        if relu:
            network.append(nn.ReLU())
    hypothesis.assume(len(network))
    torch.manual_seed(0)
    same(network.eval(), torch.randn(batch, 3, *size))


@pytest.mark.parametrize("before", [nn.Identity(), nn.ReLU()])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d, partial(nn.AvgPool2d, count_include_pad=False)])
def test_few_images_whose_last_windows_reach_beyond_them(pool, kernel, before):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), before, pool(kernel, kernel, ceil_mode=True), nn.Conv2d(4, 4, 3, padding=1)
    for batch in (1, 2, 4, 8):
        same(nn.Sequential(*layers).eval(), torch.randn(batch, 3, 11, 16))


def test_statistics_of_the_whole_batch():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()).eval()
    same(network, torch.randn(20, 3, 8, 8))


def test_what_was_read_before_it_is_changed_in_place_is_not_supported():
    def forward(m, x):
        x = m.conv(x)
        negative = x < 0
        x.relu_()
        return x.masked_fill(negative, 1.0)

    with pytest.raises(sparse.NotSupported, match="in place"):
        lpk.sparsify(Zoo(forward))(torch.randn(2, 3, 8, 8))


def asks_for_values(m, x):
    return m.conv(x) if x.sum() > 0 else x


def changes_a_view(m, x):
    x = m.conv(x)
    x[:, :2].mul_(2)
    return m.second(x)


def changes_what_was_chunked(m, x):
    x = m.conv(x)
    a, b = x.chunk(2, 1)
    x.relu_()
    return torch.cat((b, a), 1)


def fails(m, x):
    return m.conv(x).view(7, 5)


def fails_in_a_layer(m, x):
    return m.bn(x)


@pytest.mark.parametrize(
    ("forward", "message", "helps"),
    [
        (
            asks_for_values,
            r"Zoo can't be traced for inputs \(3, 8, 8\): .*control flow \(.*test_sparse_network.py:\d+\)",
            True,
        ),
        (changes_a_view, r"mul_ \(.*test_sparse_network.py:\d+\) changes in place", True),
        (changes_what_was_chunked, r"relu_ \(.*test_sparse_network.py:\d+\) changes in place", True),
        (fails, r"can't be traced.* view \(.*test_sparse_network.py:\d+\) fails: shape '\[7, 5\]' is invalid", False),
        (fails_in_a_layer, r"can't be traced.* bn fails: ", False),
    ],
)
def test_what_is_not_supported_is_named(forward, message, helps):
    with pytest.raises(sparse.NotSupported, match=message) as raised:
        lpk.sparsify(Zoo(forward))(torch.randn(3, 3, 8, 8))
    assert ('fallback="torch"' in str(raised.value)) == helps
    assert "num_users" not in str(raised.value) and "\n" not in str(raised.value)
