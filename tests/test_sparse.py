"""Whole networks on the engine compute what PyTorch computes."""

import copy
import gc
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
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
from lpk import files, models, ops, sparse
from lpk.flat import Layout
from lpk.sparse.network import Network
from tests.conftest import make_network, sizes_as_arguments
from tests.test_eager import with_random_statistics


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


def test_a_ticket_a_pooled_network_and_a_state_dict(tickets, network, validation, tmp_path):
    images, _ = validation
    pooled = lpk.pool(tickets, 3, model=network, validation=validation, statistics="leave", progress=False)
    for ticket in (tickets[3], tickets[3].state_dict, pooled):
        network.load_state_dict(getattr(ticket, "state_dict", ticket))
        with torch.no_grad():
            expected = network.eval()(images)
        torch.testing.assert_close(lpk.sparsify(make_network(), ticket)(images), expected, rtol=1e-4, atol=1e-5)
    pooled.save(tmp_path / "pooled.safetensors")
    for path in (tmp_path / "pooled.safetensors", str(tmp_path / "pooled.safetensors")):
        torch.testing.assert_close(lpk.sparsify(make_network(1), path)(images), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_copied(network):
    made = lpk.sparsify(network)
    before = made(torch.ones(1, 1, 6, 6))
    network[0].weight.data.zero_()
    assert torch.equal(made(torch.ones(1, 1, 6, 6)), before)


def test_saved_and_read_again(tickets, network, validation, tmp_path):
    images, _ = validation
    ticket = tickets[3]
    mask = ticket.mask.clone()
    mask[0] = True  # with a weight that remains although it is zero
    ticket = type(ticket)(3, ticket.layout, ticket.flat, mask)
    made = lpk.sparsify(network, ticket)
    made.save(tmp_path / "before")
    expected = made(images)
    made.save(str(tmp_path / "after"))
    assert torch.equal(made(images), expected)
    for path in (tmp_path / "before", str(tmp_path / "after")):
        state, masks = sparse.load_sparse(path)
        assert list(state) == list(ticket.state_dict) and list(masks) == list(ticket.masks)
        assert all(torch.equal(state[name], tensor) for name, tensor in ticket.state_dict.items())
        assert all(torch.equal(masks[name], tensor) for name, tensor in ticket.masks.items())
        assert torch.equal(lpk.sparsify(make_network(1), path)(images), expected)


def test_a_model_of_its_own_is_saved_with_the_zeros_it_has(tmp_path):
    network = pruned(make_network(), 0.3)
    sparse.sparsify(network).save(tmp_path / "net")
    state, masks = sparse.load_sparse(tmp_path / "net")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(
        int(network[i].weight.count_nonzero()) for i in (0, 3)
    )


def memory():
    """Of all tensors that are there, in bytes."""
    gc.collect()
    return uncollected_memory()


def uncollected_memory():
    kinds = torch.Tensor, nn.Parameter
    tensors = [x for x in gc.get_objects() if type(x) in kinds and x.layout == torch.strided]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("density", [0.1, 0.02])
def test_memory_is_in_proportion_to_what_remains(density):
    network = pruned(
        nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.Linear(1000, 2)), density
    )
    inputs, dense = torch.randn(16, 1000), 4 * 2_000_000
    before = memory()
    made = sparse.sparsify(network)
    outputs = [made(inputs), made(inputs[:3])]
    assert memory() - before < 4 * density * dense + 500_000  # values, where they are, both packed; activations
    with torch.no_grad():
        torch.testing.assert_close(outputs[1], network(inputs[:3]), rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_shapes_of_inputs():
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made, held = sparse.sparsify(network), []
    gc.collect()
    gc.disable()
    try:
        for i in range(2 * sparse.SHAPES):
            inputs = torch.randn(3, 3, 16 + i, 32 - i)
            with torch.no_grad():
                torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)
            held.append(uncollected_memory())
    finally:
        gc.enable()
    assert held[-1] < 1.2 * held[sparse.SHAPES - 1]


def test_memory_does_not_grow_with_the_sizes_of_batches():
    made = sparse.sparsify(models.build("small-resnet", classes=10, shape=(3, 16, 16)))
    made(torch.randn(16, 3, 16, 16))
    before = memory()
    outputs = [made(torch.randn(batch, 3, 16, 16)) for batch in range(9, 16)]
    assert memory() - before < 100_000 and len(outputs) == 7


def test_shapes_and_batches_that_come_later():
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made = sparse.sparsify(network)
    for shape in ((4, 3, 16, 16), (2, 3, 16, 16), (4, 3, 20, 12), (4, 3, 16, 16), (30, 3, 20, 12)):
        inputs = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_in_inference_mode(network):
    inputs = torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        made = sparse.sparsify(pruned(network, 0.3))
        expected = network(inputs)
        torch.testing.assert_close(made(inputs), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made(inputs[:2]), expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(inputs[:3]), expected[:3].clone(), rtol=1e-4, atol=1e-5)


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


def test_weights_that_pytorch_reads_stay():
    network = Shared().eval()
    for parameter in network.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    made = sparse.sparsify(network)
    for batch in (2, 2, 5, 2):
        inputs = torch.randn(batch, 3, 6, 5)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = make_network()

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


MODES = (torch.no_grad, torch.inference_mode)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("modes", list(itertools.product(MODES, repeat=3)))
def test_in_every_mode(modes, traced, tmp_path):
    """Made, called and called again in one mode or the other, whatever reads the weights."""
    network = Shared().eval() if traced else Dynamic().eval()
    for parameter in network.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    inputs = torch.rand(4, 3, 6, 5) if traced else torch.rand(4, 1, 6, 6)
    with torch.no_grad():
        expected = network(inputs)
    first, second, third = modes
    with first():
        made = lpk.sparsify(network, fallback="torch")
    for mode, count in ((second, 4), (third, 2)):
        with mode():
            torch.testing.assert_close(made(inputs[:count]), expected[:count], rtol=1e-4, atol=1e-5)
            made.save(tmp_path / "network.safetensors")
        read = sparse.load_sparse(tmp_path / "network.safetensors")[0]
        assert all(torch.equal(read[name], value) for name, value in network.state_dict().items())


def test_what_can_not_be_traced_is_an_error_or_runs_in_torch():
    network, inputs = Dynamic().eval(), torch.randn(3, 1, 6, 6)
    with pytest.raises(ValueError, match="Dynamic can't be traced"):
        lpk.sparsify(network)(inputs)
    with torch.no_grad():
        assert torch.equal(lpk.sparsify(network, fallback="torch")(inputs), network(inputs))
        network = pruned(network, 0.3)
        made = lpk.sparsify(network, fallback="torch")
        for part in (inputs, inputs, inputs[:2], inputs):
            assert torch.equal(made(part), network(part))


def test_what_is_no_tensor_is_returned_by_torch():
    def forward(m, x):
        return {"out": m.conv(x) if x.sum() < 1e9 else x, "aux": (m.conv(x), x.shape)}  # torch.fx can't trace it

    network, inputs = Zoo(forward).eval(), torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        expected = network(inputs)
    returned = lpk.sparsify(network, fallback="torch")(inputs)
    assert torch.equal(returned["out"], expected["out"]) and returned["aux"][1] == inputs.shape
    assert not returned["out"].is_inference() and not returned["out"].requires_grad


def test_dropout_that_is_not_told_otherwise_drops():
    made = lpk.sparsify(Zoo(lambda m, x: F.dropout(m.conv(x), 0.5)))
    assert 0.4 < float((made(torch.randn(20, 3, 8, 8)) == 0).float().mean()) < 0.6


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize(("path", "name"), [("", "Sequential"), ("1", "1"), ("1.0", "1.0")])
def test_forward_hooks_are_an_error_or_run_in_torch(path, name, register):
    def halve(module, *values):
        return values[-1] / 2 if torch.is_tensor(values[-1]) else values[-1][0] / 2

    network = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 2), nn.ReLU())).eval()
    inputs = torch.randn(3, 6)
    getattr(network.get_submodule(path), register)(halve)
    with pytest.raises(sparse.NotSupported, match=f"{name} has the forward hook .*halve"):
        lpk.sparsify(network)(inputs)
    with torch.no_grad():
        assert torch.equal(lpk.sparsify(network, fallback="torch")(inputs), network(inputs))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_forward_hooks_are_an_error_or_run_in_torch_while_they_are_there(register):
    def halve_linear(module, *values):
        if isinstance(module, nn.Linear):
            return values[-1] / 2 if torch.is_tensor(values[-1]) else values[-1][0] / 2

    network = pruned(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 0.5).eval()
    inputs = torch.randn(3, 6)
    strict, made = lpk.sparsify(network), lpk.sparsify(network, fallback="torch")
    with torch.no_grad():
        expected = network(inputs)
        torch.testing.assert_close(made(inputs), expected)
        handle = getattr(nn.modules.module, register)(halve_linear)
        try:
            assert torch.equal(made(inputs), network(inputs)) and not torch.allclose(network(inputs), expected)
            with pytest.raises(sparse.NotSupported, match=r"has the forward hook \S+halve_linear, a global one"):
                strict(inputs)
        finally:
            handle.remove()
        for each in (strict, made):
            torch.testing.assert_close(each(inputs), expected)


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
        (asks_for_values, r"Zoo can't be traced for inputs \(3, 8, 8\): .*control flow \(.*test_sparse.py:\d+\)", True),
        (changes_a_view, r"mul_ \(.*test_sparse.py:\d+\) changes in place", True),
        (changes_what_was_chunked, r"relu_ \(.*test_sparse.py:\d+\) changes in place", True),
        (fails, r"can't be traced.* view \(.*test_sparse.py:\d+\) fails: shape '\[7, 5\]' is invalid", False),
        (fails_in_a_layer, r"can't be traced.* bn fails: ", False),
    ],
)
def test_what_is_not_supported_is_named(forward, message, helps):
    with pytest.raises(sparse.NotSupported, match=message) as raised:
        lpk.sparsify(Zoo(forward))(torch.randn(3, 3, 8, 8))
    assert ('fallback="torch"' in str(raised.value)) == helps
    assert "num_users" not in str(raised.value) and "\n" not in str(raised.value)


def test_weights_stay_where_pytorch_evaluates_inputs_of_another_shape():
    network = pruned(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), 0.5)
    made = lpk.sparsify(network, fallback="torch")
    for shape in ((3, 6), (3, 4, 6), (3, 4, 6), (3, 6), (2, 6), (3, 4, 6)):  # the engine does not know [batch, 4, 6]
        inputs = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 12, 20)])
def test_called_from_several_threads(shape):
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made, inputs = sparse.sparsify(network), torch.randn(8, 2, *shape)
    with torch.no_grad():
        expected = [network(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(made, inputs.repeat(25, 1, 1, 1, 1)))
    for i, output in enumerate(outputs):
        torch.testing.assert_close(output, expected[i % 8], rtol=1e-4, atol=1e-4)


def test_networks_are_traced_in_several_threads():
    """torch.fx replaces nn.Module.__call__ meanwhile, in the whole process."""
    inputs = torch.randn(2, 3, 6, 5)
    networks = [Shared().eval() for _ in range(24)]
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda network: lpk.sparsify(network)(inputs), networks))
        for network, output in zip(networks, outputs, strict=True):
            torch.testing.assert_close(output, network(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("called", [False, True])
def test_copied(copied, called, tmp_path):
    network = pruned(nn.Sequential(nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 2)), 0.05)
    inputs = torch.randn(3, 500)
    made = lpk.sparsify(network)
    if called:
        made(inputs)
    before = memory()
    copy_of_it = copied(made)
    assert memory() - before < 0.2 * 4 * 500 * 500
    assert torch.equal(copy_of_it(inputs), made(inputs))
    copy_of_it.save(tmp_path / "network")
    state, _ = sparse.load_sparse(tmp_path / "network")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_what_a_module_keeps_of_its_forward_is_no_proxy():
    def forward(m, x):
        m.features = m.conv(x)
        return m.features.relu()

    made, inputs = lpk.sparsify(Zoo(forward)), torch.randn(3, 3, 6, 6)
    expected = made(inputs)
    assert not hasattr(made._model[0], "features")
    assert torch.equal(copy.deepcopy(made)(inputs), expected)


def test_bad_input_is_named(network, tmp_path):
    made = lpk.sparsify(network)
    with pytest.raises(RuntimeError, match="require a gradient"):
        made(torch.ones(1, 1, 6, 6, requires_grad=True))
    with pytest.raises(TypeError, match="float64 on cpu"):
        made(torch.ones(1, 1, 6, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"0\.weight is torch\.float16"):
        lpk.sparsify(network.half())
    with pytest.raises(TypeError, match="of type ndarray"):
        made(torch.ones(1, 1, 6, 6).numpy())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lpk.sparsify(make_network(), "nowhere")
    with pytest.raises(files.FileDamaged, match="is a directory"):
        lpk.sparsify(make_network(), tmp_path)
    with pytest.raises(ValueError, match="fallback is 'none'"):
        lpk.sparsify(make_network(), fallback="none")
    with pytest.raises(ValueError, match="can't be traced"):
        made(torch.ones(1, 2, 6, 6))
