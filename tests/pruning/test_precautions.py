"""What lpk.imp refuses before training or as soon as it can be seen, and what it warns of."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization

import lpk
from tests.pruning.perceptron import OPTIMIZERS, OPTIONS, X, mlp, trains
from tests.same import same

sgd = trains(OPTIMIZERS["sgd"])


class Called(BaseException):
    pass


def never(model, start, stop):
    raise Called


def with_buffer(value, make=mlp):
    model = make()
    model.register_buffer("mask", value)
    return model


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_complex_buffer_that_stays_is_kept(tmp_path):
    phases = torch.polar(torch.ones(3), torch.arange(3.0))
    tickets = lpk.imp(with_buffer(phases.clone()), sgd, store=tmp_path, **OPTIONS)
    assert same(lpk.imp(with_buffer(phases.clone()), never, store=tmp_path, **OPTIONS), tickets)
    assert all(torch.equal(ticket.state_dict["mask"], phases) for ticket in tickets)

    def train(model, start, stop):
        sgd(model, start, stop)
        model.mask *= 1j

    with pytest.raises(ValueError, match=r"round 0 diverged: 'mask' is torch\.complex64 and not the same as before"):
        lpk.imp(with_buffer(phases), train, **OPTIONS)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_a_buffer_that_stays_may_hold_anything(value, tmp_path):
    mask = torch.full((3, 3), value).triu(1)
    model = with_buffer(mask.clone())
    tickets = lpk.imp(model, sgd, store=tmp_path, **OPTIONS)
    again = lpk.Tickets.load(tmp_path)
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(again, tickets, strict=True))
    states = [ticket.state_dict for ticket in lpk.Tickets.from_state_dicts([t.state_dict for t in again], model=model)]
    pooled = lpk.pool(again, 1, model=model, evaluate=lambda m: float(m[0].bias.sum()), progress=False)
    pooled.save(tmp_path / "pooled.safetensors")
    for state in (*states, pooled.state_dict, lpk.Pooled.load(tmp_path / "pooled.safetensors").state_dict):
        assert torch.equal(state["mask"].view(torch.int32), mask.view(torch.int32))


def spoils_the_buffer(model):
    model.mask[0, 1] = math.nan


def spoils_a_bias(model):
    model[0].bias.data[2] = math.inf


def mends_the_buffer(model):
    model.mask[0, 1] = 0.0


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        (spoils_the_buffer, 0, r"round 0 diverged: mask\[0, 1\] is nan, not -inf as before training"),
        (spoils_the_buffer, 1, r"round 1 diverged: mask\[0, 1\] is nan, not -inf as in round 0"),
        (spoils_a_bias, 0, r"round 0 diverged: 0\.bias\[2\] is inf; every parameter must be finite"),
        (spoils_a_bias, 2, r"round 2 diverged: 0\.bias\[2\] is inf"),
        (mends_the_buffer, 1, r"round 1 diverged: in round 0 mask\[0, 1\] is -inf, not 0\.0 as now"),
    ],
)
def test_what_becomes_infinite_is_named_with_its_round(change, at, message):
    rounds = []

    def train(model, start, stop):
        sgd(model, start, stop)
        if stop == OPTIONS["epochs"]:
            rounds.append(start)
            if len(rounds) == at + 1:
                change(model)

    with pytest.raises(ValueError, match=message):
        lpk.imp(with_buffer(torch.tensor([[0.0, -math.inf], [0.0, 0.0]])), train, **OPTIONS)


def test_a_buffer_may_become_finite_in_the_dense_network():
    """As the range of an observer does, which is (inf, -inf) before its first batch."""

    def train(model, start, stop):
        model.mask.fill_(3.0)
        sgd(model, start, stop)

    tickets = lpk.imp(with_buffer(torch.tensor(math.inf)), train, **OPTIONS)
    assert all(ticket.state_dict["mask"] == 3.0 for ticket in tickets)


def test_tickets_that_differ_where_nothing_can_be_mixed_are_named():
    def states(*values):
        return [{"w": torch.eye(2), "b": torch.tensor([0.0, v])} for v in values]

    for values, ticket in (((1.0, -math.inf), 1), ((math.nan, 1.0), 0), ((-math.inf, -math.inf, math.inf), 2)):
        with pytest.raises(ValueError, match=rf"ticket {ticket}: b\[1\] is .*, not .* as in ticket"):
            lpk.Tickets.from_state_dicts(states(*values))
    assert len(lpk.Tickets.from_state_dicts(states(-math.inf, -math.inf))) == 2
    phases = [{"w": torch.eye(2), "b": torch.tensor([1j, 2 * i + 1j])} for i in (0, 0, 1)]
    assert len(lpk.Tickets.from_state_dicts(phases[:2])) == 2
    with pytest.raises(ValueError, match=r"ticket 2: 'b' is torch\.complex64 and not the same as in ticket 0"):
        lpk.Tickets.from_state_dicts(phases)
    model = nn.Linear(2, 2)
    bad = [{"weight": torch.eye(2), "bias": torch.tensor([0.0, math.inf])}] * 2
    with pytest.raises(ValueError, match=r"ticket 0: bias\[1\] is inf; every parameter must be finite"):
        lpk.Tickets.from_state_dicts(bad, model=model)


# --- before training --------------------------------------------------------------------------------------------------


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}


def shared(model):
    model.register_buffer("shared", torch.zeros(1).expand(4))


def infinite(model):
    model[2].bias.data[1] = math.nan


def parameter(value):
    return lambda model: model.register_parameter("own", nn.Parameter(value, requires_grad=False))


def replaced(layer):
    return lambda model: model.__setitem__(0, layer())


@pytest.mark.filterwarnings("ignore:.*(quantized tensor creation|TypedStorage)")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (parameter(torch.ones(2, dtype=torch.complex64)), TypeError, r"the parameter 'own' is torch\.complex64"),
        (lambda m: m.register_buffer("own", torch.ones(2).to(torch.float8_e4m3fn)), TypeError, r"'own' is .*float8"),
        (lambda m: m.register_buffer("own", torch.ones(2).double()), TypeError, r"'own' is torch\.float64"),
        (lambda m: m.register_buffer("own", torch.eye(2).to_sparse()), TypeError, "'own' .* layout torch.sparse_coo"),
        (lambda m: m.register_buffer("own", torch.empty(2, device="meta")), TypeError, "'own' is on the device meta"),
        (
            lambda m: m.register_buffer("own", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
            TypeError,
            r"'own' is torch\.qint8",
        ),
        (lambda m: m[0].double(), TypeError, r"'0\.weight' is torch\.float64"),
        (replaced(lambda: nn.LazyLinear(12)), ValueError, r"'0\.weight' is not initialized yet: send a batch"),
        (replaced(lambda: Extra(8, 12)), TypeError, r"'0\._extra_state' is a dict, not a tensor; let get_extra_state"),
        (
            shared,
            ValueError,
            r'state_dict\(\) can\'t be loaded into it, as each round does: .* parameter named "shared"',
        ),
        (infinite, ValueError, r"before training 2\.bias\[1\] is nan; every parameter must be finite"),
    ],
)
def test_what_cannot_be_kept_is_named_before_training(change, error, message):
    model = mlp()
    change(model)
    with pytest.raises(error, match=message) as caught:
        lpk.imp(model, never, **OPTIONS)
    assert "\n" not in str(caught.value)


class Deaf(nn.Linear):
    def _load_from_state_dict(self, *args):
        pass


class Clipped(nn.Linear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.weight.data.clamp_(-0.01, 0.01)


def test_a_network_that_cannot_be_rewound_is_named():
    for layer, train in ((Clipped, never), (Deaf, sgd)):
        model = mlp()
        model[0] = layer(8, 12)
        with pytest.raises(ValueError, match=r"'0\.weight' is not what was loaded into the network"):
            lpk.imp(model, train, **OPTIONS)


# --- what training makes of the network -------------------------------------------------------------------------------


def observed():
    stub, back = quantization.QuantStub(), quantization.DeQuantStub()
    model = nn.Sequential(stub, nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3), back)
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(model.train())


class Lengthening(nn.Sequential):
    def __init__(self):
        super().__init__(*mlp())
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen = x.detach().abs().amax(0)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated", "ignore:Please use quant_min")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (observed, r"'1\.weight_fake_quant\..*' from shape \(\d,\) to \(12,\)"),
        (Lengthening, r"'seen' from shape \(1,\) to \(8,\)"),
    ],
)
def test_a_shape_that_changes_is_named_at_the_first_step(make, message):
    steps = []

    def train(model, start, stop):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            steps.append(optimizer)
            optimizer.step()

    with pytest.raises(ValueError, match=f"train changed {message}, .*: send a batch through the network before"):
        lpk.imp(make(), train, **OPTIONS)
    assert len(steps) == 1
    model = make()
    model(X)
    assert len(lpk.imp(model, train, **OPTIONS)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.bfloat16(), r"'0\.weight' from torch\.float32 to torch\.bfloat16: convert"),
        (lambda m: m.half(), r"'0\.weight' from torch\.float32 to torch\.float16: convert"),
        (lambda m: m.register_buffer("more", torch.zeros(1)), "gave the network 'more', which it had not"),
        (lambda m: m.__setitem__(2, nn.Linear(12, 4)), r"'2\.weight' from shape \(3, 12\) to \(4, 12\)"),
        (lambda m: m.__delitem__(2), r"train left the network without '2\.weight'"),
        (lambda m: m.mask.resize_(5), r"'mask' from shape \(2,\) to \(5,\)"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_another_network_is_named_after_the_first_call(change, message, stored, tmp_path):
    calls = []

    def train(model, start, stop):
        calls.append(start)
        sgd(model, start, stop)
        change(model)

    with pytest.raises(ValueError, match=message):
        lpk.imp(with_buffer(torch.zeros(2, dtype=torch.int64)), train, store=tmp_path if stored else None, **OPTIONS)
    assert calls == [0]


def test_train_may_convert_the_network_and_convert_it_back(tmp_path):
    def train(model, start, stop):
        model.bfloat16()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.mul_(1.5)
        model.float()

    tickets = lpk.imp(mlp(), train, store=tmp_path, **OPTIONS)
    assert len(tickets) == 3 and same(lpk.imp(mlp(), never, store=tmp_path, **OPTIONS), tickets)


# --- warnings ---------------------------------------------------------------------------------------------------------


def told(recorded):
    """The texts of the warnings; each is of a line in this file."""
    assert all(warning.filename == __file__ for warning in recorded)
    return [str(warning.message) for warning in recorded]


def test_a_train_that_changes_nothing_is_warned_of_once():
    def on_a_copy(model, start, stop):
        sgd(copy.deepcopy(model), start, stop)

    def once(model, start, stop):
        if not once.done:
            sgd(model, start, stop)
        once.done = stop == OPTIONS["epochs"]

    once.done = False
    for train, message in (
        (on_a_copy, "of round 0 are those before it"),
        (once, "of round 1 are those it started from"),
    ):
        with pytest.warns(UserWarning, match=f"train changed no parameter: the weights {message}") as recorded:
            lpk.imp(mlp(), train, **OPTIONS)
        assert len(told(recorded)) == 1


def test_a_layer_that_is_emptied_is_warned_of_once():
    def scaled():
        model = mlp()
        model[0].weight.data.mul_(1e-3)
        return model

    def train(model, start, stop):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01)

    options = {"prunable": ["0.weight", "2.weight"], "fraction": 0.5, **OPTIONS}
    with pytest.warns(UserWarning) as recorded:
        lpk.imp(scaled(), train, **{**options, "rounds": 4})
    (text,) = told(recorded)
    densities = r"0\.weight 0\.00%, 2\.weight \d+\.\d\d%"
    leaves = r"round \d: pruning leaves no weight of '0\.weight'; densities by layer: "
    assert re.match(rf"{leaves}{densities}\. `floor=` keeps a share of each$", text)
    with warnings.catch_warnings(action="error"):
        lpk.imp(scaled(), train, floor=0.02, **{**options, "rounds": 4})


def test_a_round_that_prunes_nothing_is_warned_of_once():
    with pytest.warns(UserWarning) as recorded:
        tickets = lpk.imp(mlp(), sgd, fraction=0.001, **OPTIONS)
    (text,) = told(recorded)
    assert "round 1 prunes nothing: 0.001 of 96 weights is less than half a weight" in text
    assert [ticket.keep for ticket in tickets] == [96] * 3
