"""How much each round prunes, and where: schedules, scopes and floors, against plain references."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lpk
from lpk.networks.flat import Layout
from lpk.pruning.sparsity import Sparsity
from lpk.tickets.store import TicketStore
from lpk.tickets.ticket import Ticket
from tests import reference
from tests.conftest import make_network
from tests.pruning.perceptron import mlp
from tests.pruning.training import OPTIONS, make_trainer
from tests.same import same

N = 54 + 432


def keeps(**asked):
    return Sparsity(**asked).keeps(Layout.of_model(make_network()))


def ticket_of(sizes, seed, density=1.0, dtype=torch.float32):
    """Layers of different scales, with ties and zeros among their weights."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        f"{i}": (torch.randint(-3, 4, (size,), generator=generator) * 10.0 ** (i % 3)).to(dtype)
        for i, size in enumerate(sizes)
    }
    layout = Layout.of(layers, [*layers])
    return Ticket.of(0, layout, layers, torch.rand(layout.n, generator=generator) < density)


def by_layer(ticket, mask):
    return [int(mask[entry.span].sum()) for entry in ticket.layout.weights]


def floored(ticket, keep, least):
    """One global ranking with a floor, in plain Python: layers are held at `least`, until none falls below it."""
    held = set()
    while True:
        magnitudes = ticket.flat.weights.abs().double()
        magnitudes[~ticket.mask] = -1.0
        mask, free = torch.zeros_like(ticket.mask), torch.ones_like(ticket.mask)
        for i, entry in enumerate(ticket.layout.weights):
            if i in held:
                order = magnitudes[entry.span].sort(descending=True, stable=True).indices
                mask[entry.span][order[: least[i]]] = True
                free[entry.span] = False
        magnitudes[~free] = -2.0
        order = magnitudes.sort(descending=True, stable=True).indices
        mask[order[: keep - int(mask.sum())]] = True
        below = {i for i, count in enumerate(by_layer(ticket, mask)) if count < least[i]} - held
        if not below:
            return mask
        held |= below


# --- how much ---------------------------------------------------------------------------------------------------------


def test_a_fraction_for_each_round():
    assert keeps(rounds=3, fraction=[0.5, 0.2, 0.9]) == [486, 243, 194, 19]
    assert keeps(rounds=2) == keeps(rounds=2, fraction=0.2) == keeps(rounds=2, fraction=(0.2, 0.2)) == [486, 389, 311]


@pytest.mark.parametrize(("density", "rounds"), [(0.1, 1), (0.1, 4), (0.0021, 19), (0.999, 3)])
def test_a_density_is_reached_by_a_geometric_sequence(density, rounds):
    found = keeps(rounds=rounds, density=density)
    assert found[0] == N and found[-1] == round(density * N) and len(found) == rounds + 1
    for t, keep in enumerate(found):
        assert abs(keep - N * density ** (t / rounds)) <= 0.5


def test_a_floor_is_the_decimal_as_it_was_written():
    """0.07 · 100 is more than 7 in binary."""
    ticket = ticket_of([100, 100], seed=0)
    asked = Sparsity(1, fraction=0.93, floor=0.07)
    assert asked.keeps(ticket.layout) == [200, 14] and by_layer(ticket, asked.next_mask(ticket, 14)) == [7, 7]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"fraction": 0.2, "density": 0.1}, ValueError, r"fraction is 0\.2 and density is 0\.1; one of them"),
        ({"fraction": [0.2, 0.2]}, ValueError, r"fraction is \[0\.2, 0\.2\]; for 3 rounds as many"),
        ({"fraction": [0.2, 0.0, 0.2]}, ValueError, r"fraction is \[0\.2, 0\.0, 0\.2\]; between 0 and 1"),
        ({"fraction": float("nan")}, ValueError, "fraction is nan"),
        ({"fraction": "0.2"}, TypeError, r"fraction is '0\.2'; a number, or one for each round"),
        ({"density": 1.0}, ValueError, r"density is 1\.0; between 0 and 1"),
        ({"density": 1e-6}, ValueError, "density is 1e-06, which leaves none of 486 weights"),
        ({"density": 0.1, "rounds": 0}, ValueError, r"density is 0\.1, but rounds is 0"),
        ({"scope": "tensor"}, ValueError, "scope is 'tensor'; it must be one of global, layer"),
        ({"floor": 1.0}, ValueError, r"floor is 1\.0; 0, or a density below 1"),
        (
            {"floor": 0.6},
            ValueError,
            r"floor is 0\.6, for which 2 layers keep 293 of 486 weights, but 249 are left in round 3",
        ),
        ({"restart": "weights"}, ValueError, "restart is 'weights'; it must be one of rewind, learning-rate"),
    ],
)
def test_what_cannot_be_is_named_before_training(asked, error, message):
    def train(model, start, stop):
        raise AssertionError("trained")

    with pytest.raises(error, match=message):
        lpk.imp(make_network(), train, **{**OPTIONS, **asked})


# --- where ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    share=st.floats(0.0, 1.0),
    floor=st.sampled_from([0.0, 0.05, 0.07, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_masks_are_those_of_the_plain_reference(sizes, seed, share, floor, dtype):
    ticket = ticket_of(sizes, seed, 0.7, dtype)
    # A hundredth of a size is exact in whole numbers.
    least = [
        min(c, -(-round(100 * floor) * n // 100)) for c, n in zip(by_layer(ticket, ticket.mask), sizes, strict=True)
    ]
    keep = sum(least) + round(share * (ticket.keep - sum(least)))
    mask = Sparsity(1, floor=floor).next_mask(ticket, keep)
    assert torch.equal(mask, floored(ticket, keep, least))
    shared = Sparsity(1, scope="layer", floor=floor).next_mask(ticket, keep)
    assert int(shared.sum()) == keep and not (shared & ~ticket.mask).any()
    for entry, count, low in zip(ticket.layout.weights, by_layer(ticket, shared), least, strict=True):
        assert count >= low
        weights, before = ticket.flat.weights[entry.span], ticket.mask[entry.span]
        expected = reference.magnitude_mask(weights[before], count)
        assert torch.equal(shared[entry.span][before], expected)
        if not floor:
            assert abs(count - int(before.sum()) * keep / max(ticket.keep, 1)) < 1


@pytest.mark.parametrize("asked", [{"scope": "layer"}, {"floor": 0.5}, {"scope": "layer", "density": 0.35}])
def test_each_round_leaves_as_many_as_without(asked):
    """In a network whose first layer is small, and the first that global pruning takes."""

    def train(model, start, stop):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)

    def tickets_of(**asked):
        model = mlp()
        model[0].weight.data.mul_(1e-3)
        return lpk.imp(model, train, prunable=["0.weight", "2.weight"], **OPTIONS, **asked)

    plain, tickets = tickets_of(density=asked.get("density")), tickets_of(**asked)
    assert [ticket.keep for ticket in tickets] == [ticket.keep for ticket in plain]
    for before, ticket in itertools.pairwise(tickets):
        assert not (ticket.mask & ~before.mask).any()
        shares = [float(mask.float().mean()) for mask in ticket.masks.values()]
        if "floor" in asked:
            assert min(shares) >= 0.5
        else:
            assert abs(shares[0] - shares[1]) < 2 / 36
    assert float(plain[-1].masks["0.weight"].float().mean()) < 0.5, "nothing was to be done here"
    if "floor" in asked:
        assert float(tickets[-1].masks["0.weight"].float().mean()) == 0.5


# --- the store --------------------------------------------------------------------------------------------------------


def test_more_rounds_extend_the_fractions(tmp_path):
    fractions = [0.5, 0.2, 0.3]
    whole = lpk.imp(make_network(), make_trainer(), **OPTIONS, fraction=fractions)
    lpk.imp(make_network(), make_trainer(), **{**OPTIONS, "rounds": 2}, fraction=fractions[:2], store=tmp_path)
    for other in ([0.5, 0.3, 0.3], 0.5):
        with pytest.raises(ValueError, match=re.escape(f"holds a run with fraction=[0.5, 0.2], not {other}")):
            lpk.imp(make_network(), make_trainer(), **OPTIONS, fraction=other, store=tmp_path)
    assert same(lpk.imp(make_network(), make_trainer(), **OPTIONS, fraction=fractions, store=tmp_path), whole)


def test_one_fraction_goes_on_with_others(tmp_path):
    lpk.imp(make_network(), make_trainer(), **{**OPTIONS, "rounds": 1}, store=tmp_path)
    tickets = lpk.imp(make_network(), make_trainer(), **OPTIONS, fraction=[0.2, 0.5, 0.5], store=tmp_path)
    assert same(tickets, lpk.imp(make_network(), make_trainer(), **OPTIONS, fraction=[0.2, 0.5, 0.5]))


def test_a_density_is_of_its_rounds(tmp_path):
    first = lpk.imp(make_network(), make_trainer(), **OPTIONS, density=0.3, store=tmp_path)
    for other, message in (
        ({"rounds": 4, "density": 0.3}, "rounds=3, not 4"),
        ({"density": 0.2}, r"density=0\.3, not 0\.2"),
        ({}, r"fraction=None, not 0\.2"),
        ({"density": 0.3, "scope": "layer"}, "scope=global, not layer"),
        ({"density": 0.3, "floor": 0.1}, r"floor=0\.0, not 0\.1"),
        ({"density": 0.3, "restart": "learning-rate"}, "restart=rewind, not learning-rate"),
    ):
        with pytest.raises(ValueError, match=message):
            lpk.imp(make_network(), make_trainer(), **{**OPTIONS, **other}, store=tmp_path)
    assert same(lpk.Tickets.load(tmp_path), first)


@pytest.mark.parametrize("more", [0, 1])
def test_a_store_of_before_goes_on(tmp_path, more):
    """It names none of what could not be chosen then."""
    rounds = {**OPTIONS, "rounds": OPTIONS["rounds"] - more}
    whole = lpk.imp(make_network(), make_trainer(), **OPTIONS)
    lpk.imp(make_network(), make_trainer(), **rounds, store=tmp_path)
    store = TicketStore.open(tmp_path)
    names = ("epochs", "rounds", "fraction", "rewind", "seed")
    store.commit({name: store.metadata[name] for name in names})
    with pytest.raises(ValueError, match="scope=global, not layer"):
        lpk.imp(make_network(), make_trainer(), **OPTIONS, scope="layer", store=tmp_path)
    assert same(lpk.imp(make_network(), make_trainer(), **OPTIONS, store=tmp_path), whole)
    assert TicketStore.open(tmp_path).metadata["restart"] == "rewind"
