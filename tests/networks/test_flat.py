import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lpk
from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.networks.prunable import convolutions, prunable_names
from lpk.networks.wrappers import plain_copy
from tests.conftest import make_network

CPU = torch.device("cpu")


def test_default_prunes_convolutions_and_linear_layers_but_the_last():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 4), nn.Linear(4, 2))
    assert prunable_names(model) == ["0.weight", "2.weight"]
    assert convolutions(model) == ["0.weight"]
    assert prunable_names(model, lambda name, p: p.dim() == 1) == ["0.bias", "1.weight", "1.bias", "2.bias", "3.bias"]
    assert prunable_names(model, {"3.weight"}) == ["3.weight"]


def test_a_network_for_inference_has_the_same_layout(network):
    expected = Layout.of_model(network)
    assert Layout.of_model(network.requires_grad_(False)) == expected, "freezing is the business of lpk.imp"


@pytest.mark.parametrize(
    ("compute", "undo"),
    [
        (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (nn.utils.parametrizations.orthogonal, "remove_parametrizations"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), r"prune\.remove"),
    ],
)
def test_a_computed_weight_does_not_drop_out_unnoticed(network, compute, undo):
    compute(network[8])  # the last linear layer is not pruned anyway
    assert prunable_names(network) == ["0.weight", "3.weight"]
    compute(network[3])
    with pytest.raises(ValueError, match=rf"'3\.weight' is computed from other parameters: .*{undo}.* `prunable`"):
        prunable_names(network)
    assert prunable_names(network, ["0.weight"]) == ["0.weight"]


def test_unknown_and_useless_prunable_names_are_errors(network):
    with pytest.raises(ValueError, match=r"9\.weight"):
        prunable_names(network, ["9.weight"])
    with pytest.raises(TypeError, match=r"0\.weight"):
        prunable_names(network, "0.weight")
    with pytest.raises(ValueError, match="nothing is prunable"):
        Layout.of_model(nn.Linear(3, 3))


def test_flatten_and_unflatten_are_inverse_and_own_their_memory(network):
    layout = Layout.of_model(network)
    state = network.state_dict()
    flat = layout.flatten(state)
    assert torch.equal(flat.weights, torch.cat([state["0.weight"].reshape(-1), state["3.weight"].reshape(-1)]))
    again = layout.unflatten(flat)
    assert list(again) == list(state)
    for name in state:
        assert torch.equal(again[name], state[name]) and again[name].dtype == state[name].dtype
    flat.weights.zero_()
    assert not torch.equal(again["0.weight"], torch.zeros(()))


def test_order_is_contiguous_whatever_the_memory_format(network):
    layout = Layout.of_model(network)
    expected = layout.flatten(network.state_dict())
    other = network.to(memory_format=torch.channels_last)
    assert torch.equal(layout.flatten(other.state_dict()).weights, expected.weights)


def test_layout_survives_json(network):
    layout = Layout.of_model(network)
    assert Layout.from_json(layout.to_json()) == layout


def test_model_computes_with_what_is_written(network):
    layout = Layout.of_model(network)
    flat = FlatModel(network, layout, CPU)
    other = make_network(seed=7).eval()
    other[1].running_mean.fill_(0.3)
    flat.load(layout.flatten(other.state_dict()))
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(flat.model(x), other(x))
    before = network.state_dict()["0.weight"].clone()
    flat.weights.zero_()
    assert torch.equal(network.state_dict()["0.weight"], before), "the user's model was changed"
    assert not torch.equal(flat.model(x), other(x))
    assert int(flat.statistics.sum()) == 2 * (6 + 8)


def test_half_precision_weights_with_float32_batchnorm(network):
    for i in (0, 3, 8):
        network[i].to(torch.bfloat16)
    layout = Layout.of_model(network)
    assert layout.dtype == torch.bfloat16
    flat = FlatModel(network, layout, CPU)
    flat.load(layout.flatten(network.state_dict()))
    for name, tensor in flat.model.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    layout = Layout.of_model(model)
    assert layout.n == 16 and layout.aliases == {"1.weight": "0.weight"}
    state = layout.unflatten(layout.flatten(model.state_dict()))
    assert state["1.weight"] is state["0.weight"]
    flat = FlatModel(model, layout, CPU)
    flat.load(layout.flatten(model.state_dict()))
    x = torch.randn(3, 4)
    assert torch.equal(flat.model(x), model(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_weight_is_named(network, value):
    network[3].weight.data[2, 5, 1, 0] = value
    with pytest.raises(ValueError, match=r"3\.weight\[2, 5, 1, 0\] is -?(nan|inf)"):
        Layout.of_model(network).flatten(network.state_dict())


def test_unsupported_and_mixed_dtypes_are_named(network):
    with pytest.raises(TypeError, match=r"0\.weight.*float64"):
        Layout.of_model(make_network().double())
    network[3].half()
    with pytest.raises(ValueError, match="one dtype"):
        Layout.of_model(network)


def test_difference_names_the_culprit(network):
    layout = Layout.of_model(network)
    state = network.state_dict()
    assert layout.difference(state) is None
    assert "'8.bias' is missing" in layout.difference({k: v for k, v in state.items() if k != "8.bias"})
    assert "'more' is not expected" in layout.difference({**state, "more": torch.zeros(1)})
    assert "'8.bias' has shape (4,), not (3,)" in layout.difference({**state, "8.bias": torch.zeros(4)})


def test_copy_of_a_pruned_model_is_plain(network):
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    x = torch.randn(2, 1, 6, 6)
    expected = network(x)
    copy = plain_copy(network)
    assert "0.weight_mask" not in copy.state_dict() and "0.weight_mask" in network.state_dict()
    copy.train(network.training)
    assert torch.allclose(copy(x), expected)
    network(x).sum().backward()  # the original still trains
    assert network[0].weight_orig.grad is not None


class KeepsItsFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.history = nn.Linear(3, 4), nn.Linear(4, 2), []

    def forward(self, x):
        self.features = self.first(x)
        self.history.append(self.features.mean())
        return self.second(self.features)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("make", [lambda: nn.utils.weight_norm(nn.Linear(3, 2)), KeepsItsFeatures])
def test_a_model_that_keeps_what_it_computed_is_copied(make):
    network, x = make(), torch.randn(5, 3)
    expected = network(x)
    for copy in (plain_copy(network), lpk.sparsify(network, fallback="torch")):
        torch.testing.assert_close(copy(x), expected)
    network(x).sum().backward()  # the original still trains
