"""What a user's function and a model's own forward may do to the model that candidates are written into."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lpk
from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.pooling.pool import pool
from tests.conftest import make_network, random_tickets

CPU = torch.device("cpu")


class Net(nn.Module):
    """It has a tied weight, an integer buffer, one that is in no state dict, and one of another dtype."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("scale", torch.rand(4), persistent=False)
        self.register_buffer("shift", torch.rand(4, dtype=torch.float16))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))[:, self.order] * self.scale + self.shift.to(x)
        return self.last(self.b(self.a(x)))


def made(kind=Net, **options):
    torch.manual_seed(0)
    network = kind(**options).eval()
    layout = Layout.of_model(network)
    flat = FlatModel(network, layout, CPU)
    flat.load(layout.flatten(network.state_dict()))
    return network, layout, flat


def set_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


@torch.no_grad()
def multiply(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def replace_parameters(model):
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter * 2))


def replace_modules(model):
    model.conv, model.last = nn.Conv2d(2, 4, 3), nn.Sequential(model.last, nn.Tanh())


def train_a_step(model):
    model.train().requires_grad_(True)
    with torch.enable_grad():
        model(torch.randn(5, 2, 6, 6)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def swap(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.bfloat16()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@torch.inference_mode()
def convert_for_inference(model):
    model.double()


@torch.no_grad()
def change_buffers(model):
    for buffer in (model.order, model.scale, model.shift):
        buffer.zero_()


def forget(model):
    del model.a.weight, model.order, model.norm


SILENT = [
    nn.Module.bfloat16,
    nn.Module.half,
    nn.Module.double,
    swap,
    convert_for_inference,
    nn.Module.train,
    lambda model: model.to(memory_format=torch.channels_last),
    lambda model: model.to("meta") and None,
    lambda model: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()).clone(), model.parameters()
    ),
    lambda model: [m.register_forward_hook(lambda module, inputs, output: output * 2) for m in model.modules()],
    lambda model: parametrizations.weight_norm(model.conv),
    lambda model: setattr(model.norm, "momentum", None),
    lambda model: setattr(model, "forward", lambda x: x),
    replace_modules,
    forget,
]
TOLD = [
    set_data,
    multiply,
    replace_parameters,
    train_a_step,
    change_buffers,
    lambda model: nn.init.ones_(model.last.weight.data),
    lambda model: prune.remove(prune.l1_unstructured(model.conv, "weight", amount=0.5), "weight"),
    lambda model: model.load_state_dict(Net().state_dict()),
    lambda model: set_data(model.half()),
]


def is_as_before(flat, network, layout):
    """Whether it computes the same, bit by bit, and whatever is written next."""
    x = torch.randn(7, 2, 6, 6)
    for _ in range(2):
        assert torch.equal(flat.model(x), network(x))
        assert not any(module.training for module in flat.model.modules())
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in flat.model.parameters())
        state = flat.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
        network.load_state_dict({n: t + 1 if t.is_floating_point() else t.flip(0) for n, t in state.items()})
        flat.load(layout.flatten(network.state_dict()))


@pytest.mark.parametrize("change", SILENT)
def test_what_moves_or_converts_tensors_is_undone(change):
    network, layout, flat = made()
    with flat.lent() as changed:
        change(flat.model)
    assert not changed
    is_as_before(flat, network, layout)


@pytest.mark.parametrize("change", TOLD)
def test_what_gives_them_other_values_is_undone_and_told(change):
    network, layout, flat = made()
    with flat.lent() as changed:
        change(flat.model)
        flat.model.norm.reset_running_stats()  # what training made of them would stay
    network.norm.reset_running_stats()
    network.norm.num_batches_tracked.fill_(int(flat.model.norm.num_batches_tracked))
    assert changed
    is_as_before(flat, network, layout)


def detaching(**options):
    network = Net(**options)
    network.register_state_dict_post_hook(
        lambda module, state, prefix, local: state.update({name: tensor.detach() for name, tensor in state.items()})
    )
    return network


def test_a_state_dict_of_detached_tensors():
    network, layout, flat = made(detaching)
    is_as_before(flat, network, layout)


def test_what_cannot_be_undone_is_an_error():
    _, _, flat = made()
    with pytest.raises(ValueError, match=r"'last\.weight' of the candidate became another kind of tensor"), flat.lent():
        weight = flat.model.last.weight
        torch.utils.swap_tensors(weight, nn.Parameter(weight.detach().to_sparse()))


@pytest.mark.parametrize("convert", [lambda m: m, nn.Module.double, nn.Module.bfloat16, copy.deepcopy])
def test_statistics_that_are_renewed_stay(convert):
    network, layout, flat = made()
    x = torch.randn(64, 2, 6, 6)
    with flat.lent() as changed:
        model = convert(flat.model)
        dtype = model.last.weight.dtype
        torch.optim.swa_utils.update_bn([x.to(dtype)], model)
    assert not changed
    if convert is not copy.deepcopy:
        torch.optim.swa_utils.update_bn([x], network)
        tolerance = 0.02 if convert is nn.Module.bfloat16 else 1e-5
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(flat.model.norm, name), getattr(network.norm, name)
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
            getattr(network.norm, name).copy_(ours)
        network.norm.num_batches_tracked.zero_()
        assert torch.equal(flat.rest[flat.statistics], torch.cat((network.norm.running_mean, network.norm.running_var)))
    is_as_before(flat, network.eval(), layout)


class Masked(nn.Linear):
    """As masked layers often do it: each forward pass gives the weight new memory."""

    def forward(self, x):
        self.weight.data = self.weight.data * (self.weight.data > 0)
        return super().forward(x)


class Renewing(nn.BatchNorm1d):
    """As statistics are often written: into new tensors."""

    def forward(self, x):
        if self.training:
            m = self.momentum
            self.running_mean = (1 - m) * self.running_mean + m * x.mean(0)
            self.running_var = (1 - m) * self.running_var + m * x.var(0)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def test_a_forward_that_moves_its_own_tensors():
    tickets = random_tickets(0)
    inputs, labels = torch.randn(90, 5), torch.randint(0, 2, (90,))
    plain = nn.Sequential(Masked(5, 6), nn.Linear(6, 2))

    def correct(candidate):
        return float((candidate(inputs).argmax(1) == labels).sum()) / 90

    options = {"model": plain, "progress": False, "search": "exhaustive"}
    by_samples = pool(tickets, 2, validation=(inputs, labels), backend="torch", **options)
    by_copy = pool(tickets, 2, evaluate=lambda candidate: correct(copy.deepcopy(candidate)), **options)
    assert by_samples.steps == by_copy.steps and torch.equal(by_samples.flat.weights, by_copy.flat.weights)


def test_layers_that_renew_their_statistics_by_new_tensors():
    torch.manual_seed(0)
    tickets_of = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    states = [copy.deepcopy(tickets_of).state_dict() for _ in range(3)]
    for state in states:
        state["0.weight"] = torch.randn(6, 5)
    masks = [{"0.weight": torch.ones(6, 5, dtype=torch.bool)}] * 3
    samples = torch.randn(90, 5), torch.randint(0, 2, (90,))
    renewing = nn.Sequential(nn.Linear(5, 6), Renewing(6), nn.Linear(6, 2))
    made = [
        pool(lpk.Tickets.from_state_dicts(states, masks), 1, model=model, validation=samples, calibration=samples[0],
             method="swa", backend="torch", batch_size=30, progress=False)
        for model in (tickets_of, renewing)
    ]  # fmt: skip
    torch.testing.assert_close(made[0].flat.rest, made[1].flat.rest)


@pytest.mark.parametrize("change", [nn.Module.bfloat16, nn.Module.double, set_data])
def test_a_search_goes_on_from_what_it_wrote(change):
    """The candidates differ, and the network that is returned has the score that is reported."""
    tickets = random_tickets(0)
    wanted = torch.randn(tickets.layout.n)
    seen = []

    def closeness(model):
        weights = torch.cat([p.detach().reshape(-1).float() for n, p in model.named_parameters() if n == "0.weight"])
        seen.append(-float((weights - wanted).square().sum()))
        return seen[-1]

    def evaluate(model):
        score = closeness(model)
        change(model)
        closeness(model)
        return score

    options = {"model": nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)), "progress": False}
    expected = pool(tickets, 1, evaluate=closeness, **options)
    assert len(set(seen)) == len(seen)
    if change is set_data:
        with pytest.warns(UserWarning, match=r"evaluate changed '0\.weight' of the candidates, which was undone"):
            pooled = pool(tickets, 1, evaluate=evaluate, **options)
    else:
        pooled = pool(tickets, 1, evaluate=evaluate, **options)
    assert pooled.steps == expected.steps and torch.equal(pooled.flat.weights, expected.flat.weights)
    assert any(step.accepted for step in pooled.steps)


def test_the_target_keeps_the_statistics_that_it_was_scored_with():
    network = make_network()
    tickets = [copy.deepcopy(network).state_dict() for _ in range(2)]
    x = torch.randn(40, 1, 6, 6)
    scores = iter([1.0, *range(-30, 0)])

    def evaluate(model):
        torch.optim.swa_utils.update_bn([x], model)
        return float(next(scores))

    tickets[1]["0.weight"][0] = 0
    pooled = pool(tickets, 1, model=network, evaluate=evaluate, statistics="interpolate", progress=False)
    assert not any(step.accepted for step in pooled.steps)
    network.load_state_dict(tickets[1])
    torch.optim.swa_utils.update_bn([x], network)
    torch.testing.assert_close(pooled.state_dict["1.running_var"], network[1].running_var)
    assert torch.equal(pooled.state_dict["0.weight"], tickets[1]["0.weight"])
