"""Networks that PyTorch computes: what they return, and how."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lpk.sparse import calls, dense, onednn
from lpk.sparse.dense import InPyTorch
from tests.networks.random_statistics import with_random_statistics
from tests.sparse.networks import Dynamic, Zoo

ENDINGS = {
    **{kind.__name__: kind() for kind in calls.MODULES},
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(-0.3, 0.4),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU("tanh"),
    **{getattr(f, "__name__", f): f for f in calls.FUNCTIONS},
    "relu6": F.relu6,
    "gelu": F.gelu,
    "in place": lambda x: F.silu(x, inplace=True),
}


class ThenActivation(nn.BatchNorm2d):
    """As timm has it: PyTorch's function and an activation in one module."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        assert not self.training
        return self.act(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        )


def network(*layers):
    torch.manual_seed(0)
    return with_random_statistics(nn.Sequential(*layers).eval().requires_grad_(False))


def check(model, *inputs, calls=3):
    """That every call returns what the model does; returns what computes them."""
    expected = copy.deepcopy(model).double()(*(x.double() for x in inputs))
    made = InPyTorch(model)
    for _ in range(calls):
        got = made(*inputs)
        assert got.shape == expected.shape and got.dtype == torch.float32
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)
    return made


def called(made):
    """The types of modules, and the functions, that compute inputs like the first ones."""
    assert made.network is not None
    nodes = made.network.graph.nodes
    modules = [made.network.get_submodule(node.target) for node in nodes if node.op == "call_module"]
    return [type(module) for module in modules] + [node.target for node in nodes if node.op.startswith("call_f")]


@pytest.mark.parametrize("ending", ENDINGS)
def test_activations_are_computed_with_the_layers_before_them(ending):
    class Ended(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(5, 6)
            self.ending = ENDINGS[ending]

        def forward(self, x):
            end = self.ending
            x = self.layer(x)
            x = getattr(x, end)() if isinstance(end, str) else end(x)
            y = self.linear(x)
            return getattr(y, end)() if isinstance(end, str) else end(y)

    torch.manual_seed(0)
    made = check(Ended().eval().requires_grad_(False), torch.randn(2, 3, 6, 7))
    assert called(made) == [onednn.PackedConvolution, onednn.PackedLinear]
    model = nn.Sequential(nn.Linear(5, 6), ENDINGS["ReLU"]).eval().requires_grad_(False)
    check(model, torch.randn(2, 5))  # few rows are not packed


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 8}, {"groups": 2, "bias": False},
        {"kernel_size": 1}, {"kernel_size": 1, "padding": 2}, {"padding": "same"},
        {"padding_mode": "reflect", "padding": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(9, 8), (1, 1)])
def test_convolutions(options, size):
    layer = nn.Conv2d(8, 16, **{"kernel_size": 3, **options})
    if size == (1, 1) and layer.kernel_size != (1, 1):
        return
    made = check(network(layer, nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 3, 1)), torch.randn(3, 8, *size))
    others = "padding_mode" in options or options.get("padding") == "same"
    assert called(made) == ([nn.Conv2d, nn.SiLU] if others else [onednn.PackedConvolution]) + [onednn.PackedConvolution]


def test_batchnorm_is_folded_also_where_it_has_an_activation():
    model = network(nn.Conv2d(3, 8, 3), ThenActivation(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert called(check(model, torch.randn(2, 3, 9, 9))) == [onednn.PackedConvolution] * 2
    model[0].register_forward_hook(lambda module, args, output: -output)
    made = InPyTorch(model)
    x = torch.randn(2, 3, 9, 9)
    for _ in range(2):
        assert torch.equal(made(x), model(x.contiguous(memory_format=torch.channels_last)))


def test_without_onednn_batchnorm_is_folded_all_the_same(monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    model = network(nn.Conv2d(3, 8, 3), ThenActivation(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert called(check(model, torch.randn(2, 3, 9, 9))) == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU]


def test_what_reads_a_layer_twice_reads_it_before_the_activation():
    model = with_random_statistics(Zoo(lambda m, x: (y := m.conv(x)) + F.relu(y)).eval().requires_grad_(False))
    assert onednn.PackedConvolution in called(check(model, torch.randn(2, 3, 6, 6)))
    model = Zoo(lambda m, x: (F.relu_(y := m.conv(x)), y * 2)[1]).eval().requires_grad_(False)
    check(model, torch.randn(2, 3, 6, 6))


def test_batches_of_any_size_are_computed_in_parts_where_samples_are_apart(monkeypatch):
    monkeypatch.setattr(dense, "PART", 1 << 12)
    apart = network(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    made = InPyTorch(apart)
    for batch in (1, 7, 32, 7, 1, 32):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(made(x), apart(x), rtol=1e-4, atol=1e-5)
    ways = {key[0][0][0]: type(call) for key, call in made._calls.items()}
    assert ways[32] is dense.InParts and ways[1] is not dense.InParts
    mixing = Zoo(lambda m, x: m.conv(x) - 1e-3 * m.conv(x).mean(0)).eval().requires_grad_(False)
    assert dense.InParts not in map(type, check(mixing, torch.randn(32, 3, 6, 6))._calls.values())
    counting = Zoo(lambda m, x: m.conv(x) * x.shape[0]).eval().requires_grad_(False)
    assert dense.InParts not in map(type, check(counting, torch.randn(32, 3, 6, 6))._calls.values())


def test_several_inputs_and_what_has_no_place_in_the_graph():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.embedding = nn.Linear(4, 4), nn.Embedding(9, 4)

        def forward(self, x, words, scale=1.0, *, shift=0.0):
            return {"sum": self.layer(x) + self.embedding(words) * scale + shift, "words": words}

    model = Two().eval().requires_grad_(False)
    made = InPyTorch(model)
    x, words = torch.randn(16, 4), torch.randint(9, (16,))
    calls = [((x, words), {}), ((x,), {"words": words}), ((), {"words": words, "x": x}), ((x, words, 2.0), {})]
    for args, kwargs in [*calls, ((x, words), {"shift": x}), *calls]:
        got, expected = made(*args, **kwargs), model(*args, **kwargs)
        torch.testing.assert_close(got["sum"], expected["sum"])
        assert torch.equal(got["words"], words)
    assert onednn.PackedLinear in called(made)
    with pytest.raises(TypeError, match="words"):
        made(x)


def test_what_can_not_be_traced_runs_as_it_is():
    model = Dynamic().eval().requires_grad_(False)
    made = InPyTorch(model)
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(made(x), model(x)) and made.network is None


def test_what_is_not_the_same_at_each_call_runs_as_it_is():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.numbers = nn.Linear(4, 4), itertools.count()
            self.register_buffer("calls", torch.zeros(()))

    class InAnIterator(Counting):
        def forward(self, x):
            return self.layer(x) + next(self.numbers)

    class InABuffer(Counting):
        def forward(self, x):
            self.calls.add_(1)
            return self.layer(x)

    x = torch.randn(16, 4)
    model = InAnIterator().eval().requires_grad_(False)
    made = InPyTorch(model)
    first, second = made(x), made(x)
    torch.testing.assert_close(second - first, torch.ones_like(first))
    model = InABuffer().eval().requires_grad_(False)
    made = InPyTorch(model)
    for _ in range(3):
        torch.testing.assert_close(made(x), model.layer(x))
    assert model.calls == 3


def test_values_that_are_not_finite_stay_so_and_decide_nothing():
    model = network(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    made = InPyTorch(model)
    x = torch.randn(2, 3, 6, 6)
    assert made(x * float("nan")).isnan().all() and not made._calls
    made(x)
    assert made.network is not None and made(x * float("nan")).isnan().all()
    made = InPyTorch(Zoo(lambda m, x: m.conv(x * 1e36)).eval().requires_grad_(False))
    assert not made(x * 1e4).isfinite().all() and not made._calls


def test_weights_are_not_kept_beside_their_packed_form():
    made = check(network(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 9, 9))
    assert [layer.weight for layer in made.network.children() if isinstance(layer, onednn.PackedConvolution)] == [
        None,
        None,
    ]
