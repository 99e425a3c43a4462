"""Algorithm 1: which weights are pruned, what is rewound, and what a train may do."""

import copy
import itertools

import pytest
import torch
from torch import nn

import lpk
from lpk.pruning.sparsity import Sparsity
from tests.conftest import make_network, sgd
from tests.pruning.training import OPTIONS, make_trainer
from tests.same import same


def test_each_round_keeps_what_the_paper_says(images):
    tickets = lpk.imp(make_network(), sgd(*images), fraction=0.3, **OPTIONS)
    keep = 54 + 432
    for t, ticket in enumerate(tickets):
        assert ticket.round == t and ticket.keep == keep
        keep -= round(0.3 * keep)
    for denser, sparser in itertools.pairwise(tickets):
        assert not (sparser.mask & ~denser.mask).any(), "a pruned weight came back"
        assert not sparser.flat.weights[~sparser.mask].any()
        assert torch.equal(sparser.mask, Sparsity(3, 0.3).next_mask(denser, sparser.keep))


def test_pruning_is_global_by_magnitude(images):
    first, second = lpk.imp(make_network(), sgd(*images), **{**OPTIONS, "rounds": 1})
    magnitudes = first.flat.weights.abs()
    assert magnitudes[second.mask].min() >= magnitudes[~second.mask].max()


def test_remaining_zeros_do_not_bring_back_pruned_weights(images):
    ticket = lpk.imp(make_network(), sgd(*images), **{**OPTIONS, "rounds": 1})[1]
    ticket.flat.weights.zero_()
    mask = Sparsity(1).next_mask(ticket, ticket.keep // 2)
    assert not (mask & ~ticket.mask).any() and int(mask.sum()) == ticket.keep // 2


def test_every_round_starts_from_the_rewound_state_dict(images):
    seen, snapshot = [], {}

    def train(model, start, stop):
        seen.append((start, stop, {n: t.clone() for n, t in model.state_dict().items()}))
        sgd(*images)(model, start, stop)
        if stop == 1:
            snapshot.update({n: t.clone() for n, t in model.state_dict().items()})

    tickets = lpk.imp(make_network(), train, **OPTIONS)
    assert [(start, stop) for start, stop, _ in seen] == [(0, 1), (1, 3), (1, 3), (1, 3), (1, 3)]
    for t in (1, 2, 3):
        masks = tickets[t].masks
        for name, tensor in seen[t + 1][2].items():
            expected = snapshot[name] * masks[name] if name in masks else snapshot[name]
            assert torch.equal(tensor, expected), f"round {t} did not rewind {name}"


def test_rewind_to_initialization(images):
    starts = []

    def train(model, start, stop):
        starts.append((start, stop, model.state_dict()["8.bias"].clone()))
        sgd(*images)(model, start, stop)

    network = make_network()
    initial = network.state_dict()["8.bias"].clone()
    lpk.imp(network, train, **{**OPTIONS, "rewind": 0})
    assert all((start, stop) == (0, 3) and torch.equal(bias, initial) for start, stop, bias in starts)


@pytest.mark.filterwarnings("ignore:train changed no parameter")
def test_default_rewind_is_a_twentieth_of_the_epochs():
    calls = []
    lpk.imp(make_network(), lambda m, a, b: calls.append((a, b)), epochs=182, rounds=1, progress=False)
    assert calls == [(0, 9), (9, 182), (9, 182)]
    for epochs, rewind in ((1, 0), (2, 1), (3, 1)):
        calls.clear()
        lpk.imp(make_network(), lambda m, a, b: calls.append((a, b)), epochs=epochs, rounds=1, progress=False)
        assert calls[-1] == (rewind, epochs)
    with pytest.raises(ValueError, match="epochs is 0"):
        lpk.imp(make_network(), lambda m, a, b: None, epochs=0)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "kept"])
def test_pruned_weights_stay_zero_at_every_step(images, kind):
    """Through momentum and weight decay, and for an optimizer that is kept from round to round with its state."""
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        "kept": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    }[kind]
    network, optimizers, fewest = make_network(), [], []

    def train(model, start, stop):
        if not (kind == "kept" and optimizers):
            optimizers.append(made(model.parameters()))
        for x, y in zip(images[0].split(32), images[1].split(32), strict=True):
            optimizers[-1].zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizers[-1].step()
            fewest.append(int((model[3].weight != 0).sum() + (model[0].weight != 0).sum()))

    tickets = lpk.imp(network, train, **{**OPTIONS, "rewind": 0})
    for t in range(4):
        assert fewest[3 * t : 3 * t + 3] == [tickets[t].keep] * 3


@pytest.mark.filterwarnings("ignore:train changed no parameter")
def test_gradients_of_pruned_weights_are_masked_before_they_are_clipped(images):
    norms = []

    def train(model, start, stop):
        nn.functional.cross_entropy(model(images[0]), images[1]).backward()
        pruned = model[3].weight == 0
        norms.append(float(model[3].weight.grad[pruned].abs().sum()))
        model.zero_grad()

    lpk.imp(make_network(), train, **OPTIONS)
    assert norms and not any(norms)


def test_a_loop_without_torch_optim_is_warned_and_mended(images):
    def train(model, start, stop):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01

    with pytest.warns(UserWarning, match="pruned weights"):
        tickets = lpk.imp(make_network(), train, **OPTIONS)
    assert not tickets[3].flat.weights[~tickets[3].mask].any()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m), backend="eager")])
def test_a_wrapped_network_is_trained_as_it_is_and_keeps_its_own_names(images, tmp_path, wrap):
    plain = lpk.imp(make_network(), sgd(*images), **OPTIONS)
    wrapped, given = wrap(make_network()), []

    def train(model, start, stop):
        given.append(model)
        sgd(*images)(model, start, stop)

    tickets = lpk.imp(wrapped, train, store=tmp_path, **OPTIONS)
    assert same(tickets, plain) and tickets.layout == plain.layout
    assert all(model is wrapped for model in given)
    assert same(lpk.imp(make_network(9), train, store=tmp_path, **OPTIONS), plain), "the store is another network's"

    def pool(model):
        return lpk.pool(tickets, 2, model=model, validation=images, calibration=images, progress=False)

    pooled = pool(wrapped)
    assert torch.equal(pooled.flat.weights, pool(make_network()).flat.weights)
    x = images[0][:5]
    expected = lpk.sparsify(make_network(), pooled)(x)
    assert torch.equal(lpk.sparsify(wrapped, pooled)(x), expected)
    states = [ticket.state_dict for ticket in tickets]
    assert same(lpk.Tickets.from_state_dicts(states, model=wrapped), plain)
    pooled.to_prune(wrapped)
    assert torch.equal(lpk.sparsify(wrapped)(x), expected)


def test_frozen_weights_are_left_alone(images):
    network = make_network()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    tickets = lpk.imp(network, sgd(*images), **OPTIONS)
    assert tickets.layout.prunable == ("3.weight",) and torch.equal(network[0].weight, before)
    for prunable in (["0.weight", "3.weight"], lambda name, parameter: parameter.dim() == 4):
        with pytest.raises(ValueError, match=r"'0\.weight' is to be pruned, but it is frozen"):
            lpk.imp(network, sgd(*images), prunable=prunable, **OPTIONS)
    with pytest.raises(ValueError, match="nothing is prunable"):
        lpk.imp(network.requires_grad_(False), sgd(*images), **OPTIONS)


def test_a_train_may_freeze_what_it_trained(images):
    def freezes(model, start, stop):
        model[0].requires_grad_(start == 0)
        sgd(*images)(model, start, stop)

    def unfreezes_first(model, start, stop):
        model.requires_grad_(True)
        freezes(model, start, stop)

    def only_freezes(model, start, stop):
        if start > 0:
            model[0].requires_grad_(False)
        sgd(*images)(model, start, stop)

    expected, *made = (lpk.imp(make_network(), train, **OPTIONS) for train in (unfreezes_first, freezes, only_freezes))
    assert same(made[0], expected) and same(made[1], expected)
    assert not expected[3].state_dict["0.weight"][~expected[3].masks["0.weight"]].any()


def test_a_train_that_makes_something_else_of_the_network_is_named(images):
    def replaces(model, start, stop):
        model[0] = copy.deepcopy(model[0])
        sgd(*images)(model, start, stop)

    def parametrizes(model, start, stop):
        nn.utils.parametrizations.weight_norm(model[0])

    with pytest.warns(UserWarning, match="put in the place of the network's"):
        tickets = lpk.imp(make_network(), replaces, **OPTIONS)
    assert not tickets[3].flat.weights[~tickets[3].mask].any()
    with pytest.raises(ValueError, match=r"train left the network without '0\.weight'"):
        lpk.imp(make_network(), parametrizes, **OPTIONS)


def test_no_hook_stays_behind(images):
    network = make_network()
    lpk.imp(network, sgd(*images), **OPTIONS)
    sgd(*images)(network, 0, 1)
    assert network[3].weight.all(), "training after lpk.imp is still masked"


def test_diverged_training_is_named(images):
    def train(model, start, stop):
        model[3].weight.data[0, 0, 0, 0] = float("nan")

    with pytest.raises(ValueError, match=r"training of round 0 diverged: 3\.weight\[0, 0, 0, 0\] is nan"):
        lpk.imp(make_network(), train, **OPTIONS)
    with pytest.raises(RuntimeError, match="the loss is"):
        lpk.imp(make_network(), make_trainer(lr=1e30), **OPTIONS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epochs": 0, "rewind": 0}, "epochs is 0"),
        ({"rounds": -1}, "rounds is -1"),
        ({"fraction": 1.0}, r"fraction is 1\.0"),
        ({"rewind": 3}, "rewind is 3; an epoch from 0 to 2"),
    ],
)
def test_bad_arguments_are_named(images, bad, message):
    with pytest.raises(ValueError, match=message):
        lpk.imp(make_network(), sgd(*images), **{**OPTIONS, **bad})
