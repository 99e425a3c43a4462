"""What forward functions do: the engine computes it, whatever it is, or says what it can't run."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lpk
from lpk import sparse
from lpk.sparse.network import Network
from lpk.sparse.steps import Pool
from tests.conftest import sizes_as_arguments
from tests.networks.random_statistics import with_random_statistics
from tests.sparse.networks import Zoo, same


def read_twice(m, x):
    x = m.conv(x)
    return F.relu(x) + x


def both_sides(m, x):
    return torch.relu(m.bn(m.conv(x)) + m.second(m.conv(x)))


def doubled(m, x):
    x = m.conv(x)
    return (x + x).relu()


def dropout_and_reads(m, x):
    x = m.conv(x)
    return F.relu(F.dropout(x, training=False)) + x


def batchnorm_first(m, x):
    return m.bn(F.relu(m.conv(x)))


def foreign_in_the_middle(m, x):
    return m.second(F.softplus(m.conv(x)) * m.scale)


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


def of_three_dimensions(m, x):
    x = m.conv(x).flatten(2).transpose(1, 2)
    return F.softmax(x, 2).mean(1)


def scaled_and_shifted(m, x):
    x = 2 * m.second(m.conv(x) * m.conv.weight[:, :1, :1, 0].reshape(1, -1, 1, 1)) + 1
    return x * m.scale + m.bn.weight.view(-1, 1, 1)


def parts_of_channels(m, x):
    a, b = m.conv(x).split([1, 3], 1)
    return torch.cat((F.silu(b), a * torch.sigmoid(a)), 1) * F.adaptive_avg_pool2d(m.conv(x), 1).sigmoid()


def squeezed_and_excited(m, x):
    x = m.conv(x)
    return m.second(x * x.mean((2, 3), keepdim=True).sigmoid()) * m.bn.weight.view(-1, 1, 1) + m.bn.bias.view(-1, 1, 1)


def subtracted_and_divided(m, x):
    x = (m.conv(x) - 0.5).div(3) / 0.25
    return (2 - m.second(x.sub(1, alpha=2))) + 1 / (x.abs() + 1)


def sliced_channels(m, x):
    x = m.conv(x)
    return torch.cat((x[:, 3:].relu(), x[:, :-1], x[:, ::2]), 1) + m.second(x)[:, [0, 1, 2, 3, 0, 1]]


def pooled_windows_that_overlap(m, x):
    x = F.avg_pool2d(m.second(F.avg_pool2d(m.conv(x), 3, 1, 1)), (2, 3), (1, 2))
    below = torch.cat((x - 99, x - 98), 1)
    return F.max_pool2d(torch.cat((x.relu(), x.sigmoid()), 1), 3, 2, 1) + F.max_pool2d(below, 3, 2, 1)


def rows_of_tokens(m, x):
    x = m.conv(x).flatten(2).transpose(1, 2)
    rows = m.bn(x.flatten(0, 1)[:, :, None, None]).flatten(1)
    rows = F.batch_norm(rows, m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias)
    return F.gelu(rows.reshape_as(x)) * m.bn.bias.view(1, 1, -1)


def padded(m, x):
    x = F.pad(m.conv(F.pad(x, (0, 1, 2, 3))), (1, 0, 0, 0))
    return F.conv2d(x, m.second.weight, stride=2, padding="valid", groups=2) + F.conv2d(
        F.pad(x, (1, 1, 1, 1)), m.second.weight, stride=2, dilation=2, groups=2
    )


def padded_alike(m, x):
    return F.conv2d(F.conv2d(x, m.conv.weight[:, :, :2], padding="same"), m.second.weight, padding="same", groups=2)


def channels_last(m, x):
    x = m.conv(x).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (4,), m.bn.weight, m.bn.bias)
    x = F.gelu(F.linear(x, m.second.weight.flatten(1)[:, :4])) + x
    return m.second(x.permute(0, 3, 1, 2)).mean((2, 3))


def tokens(m, x):
    x = m.conv(x).flatten(2).transpose(1, 2)
    x = F.layer_norm(x, (4,)) + x
    return m.second(x.transpose(1, 2).unflatten(2, (8, 8))).flatten(2).mean(2)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 20])
@pytest.mark.parametrize(
    "forward",
    [
        read_twice,
        both_sides,
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
        of_three_dimensions,
        scaled_and_shifted,
        parts_of_channels,
        channels_last,
        tokens,
        padded,
        padded_alike,
        squeezed_and_excited,
        subtracted_and_divided,
        sliced_channels,
        pooled_windows_that_overlap,
        rows_of_tokens,
    ],
)
def test_what_forward_functions_do(forward, batch):
    torch.manual_seed(0)
    same(with_random_statistics(Zoo(forward)), torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize("forward", [both_sides, doubled, squeezed_and_excited, pooled_windows_that_overlap, padded])
def test_what_stays_whole(forward):
    plan = Network(with_random_statistics(Zoo(forward)), (3, 8, 8), dead=False).plan
    assert not plan.in_pytorch and not any(isinstance(s, Pool) and s.kind == "average" for s in plan.steps)


@pytest.mark.parametrize("batch", [1, 5, 17])
def test_padding_that_is_odd_stands_behind_the_image(batch):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, (2, 3), padding="same"), nn.Conv2d(4, 3, (4, 2), dilation=(1, 3), padding="same")
    network = nn.Sequential(*layers, nn.Conv2d(3, 2, 3, 2, padding="valid")).eval()
    assert Network(network, (3, 9, 8)).whole
    same(network, torch.randn(batch, 3, 9, 8))


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


@pytest.mark.parametrize("forward", [foreign_in_the_middle, broadcast, compared, of_three_dimensions])
def test_operations_of_each_sample_need_no_whole_batch(forward):
    def around(m, x):
        x = forward(m, x)
        return m.second(x if x.dim() == 4 else x[:, :, None, None] + m.conv.bias[:, None, None])

    network = Network(with_random_statistics(Zoo(around, channels=8)), (3, 8, 8))
    assert network.plan.foreign and not network.mixes


def test_channels_that_are_shuffled_stay_on_the_engine():
    def forward(m, x):
        batch, channels, height, width = m.conv(x).size()
        x = m.conv(x).view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        a, b = x.view(batch, -1, height, width).chunk(2, 1)
        return torch.cat((m.second(torch.cat((b, a), 1)), a), 1)

    def of_pixels(m, x):
        x = m.conv(x)
        return m.second(x.view(x.size(0), 2, 2, 8, 8).transpose(1, 4).reshape(x.shape))

    network = with_random_statistics(Zoo(forward))
    assert Network(network, (3, 8, 8)).whole
    for batch in (1, 2, 5, 20):
        same(network, torch.randn(batch, 3, 8, 8))
        same(with_random_statistics(Zoo(of_pixels)), torch.randn(batch, 3, 8, 8))


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


def test_statistics_of_the_whole_batch():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()).eval()
    same(network, torch.randn(20, 3, 8, 8))


def asks_for_values(m, x):
    return m.conv(x) if x.sum() > 0 else x


def fails(m, x):
    return m.conv(x).view(7, 5)


def fails_in_a_layer(m, x):
    return m.bn(x)


@pytest.mark.parametrize(
    ("forward", "message", "helps"),
    [
        (
            asks_for_values,
            r"Zoo can't be traced for inputs \(3, 8, 8\): .*control flow \(.*test_plan.py:\d+\)",
            True,
        ),
        (fails, r"can't be traced.* view \(.*test_plan.py:\d+\) fails: shape '\[7, 5\]' is invalid", False),
        (fails_in_a_layer, r"can't be traced.* bn fails: ", False),
    ],
)
def test_what_is_not_supported_is_named(forward, message, helps):
    with pytest.raises(sparse.NotSupported, match=message) as raised:
        lpk.sparsify(Zoo(forward))(torch.randn(3, 3, 8, 8))
    assert ('fallback="torch"' in str(raised.value)) == helps
    assert "num_users" not in str(raised.value) and "\n" not in str(raised.value)


def test_dropout_that_is_not_told_otherwise_drops():
    made = lpk.sparsify(Zoo(lambda m, x: F.dropout(m.conv(x), 0.5)))
    assert 0.4 < float((made(torch.randn(20, 3, 8, 8)) == 0).float().mean()) < 0.6
