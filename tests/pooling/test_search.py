import copy
import math
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import lpk
from lpk import ops
from lpk.networks.flat import Flat
from lpk.pooling import interpolations, methods
from lpk.pooling.criteria import Score
from lpk.pooling.pool import pool
from lpk.pooling.search import Plan, Search, nearest_first
from lpk.pooling.uploads import Uploads
from lpk.progress import Progress
from tests.conftest import make_images, make_network, random_tickets, sgd
from tests.pooling import reference_search
from tests.pooling.pools import CHOICES, same_network

# --- against the paper's procedure in plain PyTorch -------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 2, 4])
def test_exhaustive_search_is_the_papers_procedure(tickets, network, validation, calibration, target):
    loaders = [DataLoader(TensorDataset(*samples), batch_size=20) for samples in (validation, calibration)]
    coefficients = CHOICES["coefficients"]
    expected = reference_search.pool(
        tickets, target, network, *loaders, coefficients, prune=reference_search.exact_prune
    )
    pooled = pool(
        tickets,
        target,
        model=network,
        validation=validation,
        calibration=calibration,
        search="exhaustive",
        tolerance=0,
        **CHOICES,
    )
    total = len(validation[1])
    assert round(pooled.baseline_accuracy * total) == expected.baseline
    for ours, theirs in zip(pooled.steps, expected.steps, strict=True):
        assert (ours.candidate, ours.accepted) == (theirs.candidate, theirs.accepted)
        assert (ours.coefficient, round(ours.accuracy * total)) == (theirs.coefficient, max(theirs.counts))
    for name, tensor in pooled.state_dict.items():
        torch.testing.assert_close(tensor, expected.state_dict[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def layered():
    """Tickets of which global pruning, which spares the first layer, makes others."""
    train = sgd(*make_images(320, seed=1))
    options = {"epochs": 3, "rounds": 3, "rewind": 1, "seed": 0, "progress": False}
    return lpk.imp(make_network(), train, density=0.3, scope="layer", **options)


@pytest.mark.parametrize("prune", ["during", "after"])
@pytest.mark.parametrize("method", ["interpolation", "average", "swa"])
def test_scope_layer_keeps_the_count_of_each_layer(layered, network, validation, calibration, method, prune):
    options = {"model": network, "validation": validation, "calibration": calibration, "prune": prune, **CHOICES}

    def pools(scope):
        return pool(layered, scope=scope, method=method, **options)

    def counts(found):
        return [[int(part.count_nonzero()) for part in one.masks.values()] for one in found]

    pooled = pools("layer")
    assert counts(pooled) == counts(layered) != counts(pools("global"))
    for one in pooled:
        assert one.settings["scope"] == "layer" and not one.flat.weights[~one.mask].any()
    assert any(step.accepted for one in pooled[1:] for step in one.steps)


def test_scope_layer_keeps_zeros_where_they_are(layered, network, validation, calibration):
    """A layer that was trained to 0 keeps its count, too: the mask does not follow from the weights."""
    last = layered.layout.weights[-1].span
    zeros = []
    for ticket in layered:
        weights = ticket.flat.weights.clone()
        weights[last] = 0.0
        zeros.append(replace(ticket, flat=ticket.flat._replace(weights=weights)))
    options = {"validation": validation, "calibration": calibration, "method": "swa", **CHOICES}
    pooled = pool(zeros, 2, model=network, scope="layer", **options)
    counts = [[int(mask.sum()) for mask in one.masks.values()] for one in (pooled, layered[2])]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("target", [1, 3])
def test_scope_layer_is_the_papers_procedure_layer_by_layer(layered, network, validation, calibration, target):
    loaders = [DataLoader(TensorDataset(*samples), batch_size=20) for samples in (validation, calibration)]

    def by_layer(x, keep):
        parts = [(entry.span, int(layered[target].mask[entry.span].sum())) for entry in layered.layout.weights]
        return torch.cat([reference_search.exact_prune(x[span], keep) for span, keep in parts])

    expected = reference_search.pool(layered, target, network, *loaders, CHOICES["coefficients"], prune=by_layer)
    options = {"validation": validation, "calibration": calibration, "tolerance": 0, **CHOICES}
    pooled = pool(layered, target, model=network, scope="layer", search="exhaustive", **options)
    for ours, theirs in zip(pooled.steps, expected.steps, strict=True):
        assert (ours.candidate, ours.accepted) == (theirs.candidate, theirs.accepted)
        assert ours.coefficient == theirs.coefficient
    for name, tensor in pooled.state_dict.items():
        torch.testing.assert_close(tensor, expected.state_dict[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("criterion", ["accuracy", "loss"])
@pytest.mark.parametrize("target", range(5))
def test_bounded_search_returns_what_exhaustive_search_returns(
    tickets, network, validation, calibration, target, criterion
):
    options = {"validation": validation, "calibration": calibration, "criterion": criterion, **CHOICES}
    made = {kind: pool(tickets, target, model=network, search=kind, **options) for kind in ("exhaustive", "bounded")}
    exhaustive, bounded = made["exhaustive"], made["bounded"]
    assert same_network(exhaustive, bounded) and exhaustive.accuracy == bounded.accuracy
    for a, b in zip(exhaustive.steps, bounded.steps, strict=True):
        assert a.candidate == b.candidate and a.accepted == b.accepted
        assert (a == b) if a.accepted else b.coefficient in (None, a.coefficient)
    assert bounded.forward_samples <= exhaustive.forward_samples


class TableEvaluator:
    """Accuracies from a table instead of a network: any table, with many ties, must not tell the searches apart."""

    def __init__(self, tickets, seed: int, values: int, total: int) -> None:
        self.flat = self
        self.layout = tickets.layout
        self.weights = torch.zeros(tickets.layout.n)
        self.rest = torch.zeros(len(tickets[0].flat.rest))
        self.seed, self.values, self.total = seed, values, total
        self.highest, self.criterion = total, "accuracy"
        self.evaluate, self.statistics, self.device, self.batch_size = None, "interpolate", torch.device("cpu"), 1
        self.tolerance, self.autocast, self.backend, self.calibration = 0.0, None, "torch", None
        self.graph_problem = self.tf32 = None
        self.forward_samples = self.validated = self.scored = 0

    def load(self, flat: Flat) -> None:
        self.weights.copy_(flat.weights)
        self.rest.copy_(flat.rest)

    def written(self) -> None: ...
    def calibrate(self) -> None: ...
    def hardest_first(self, score: Score) -> None: ...

    def score(self, most: float = math.inf) -> Score | None:
        self.scored += 1
        errors = zlib.crc32(self.weights.numpy().tobytes(), self.seed) % self.values
        self.forward_samples += min(errors, most)
        return None if errors > most else Score(self.total - errors, 1 - errors / self.total, None)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), values=st.integers(1, 12), rounds=st.integers(1, 5), k=st.integers(1, 11))
def test_bounded_is_exact_on_every_table_of_accuracies(seed, values, rounds, k):
    tickets = random_tickets(seed, rounds=rounds)
    made = []
    for kind in ("exhaustive", "bounded"):
        evaluator = TableEvaluator(tickets, seed, values, total=11)
        coefficients, bar = lpk.COEFFICIENTS[:k], Progress("", 1, show=False)
        uploads = Uploads(tickets, evaluator.device)
        plan = Plan(
            tickets, evaluator, "interpolation", coefficients, "during", "global", rounds - 1, kind, 0.05, bar, uploads
        )
        made.append(Search(tickets[seed % rounds], plan).run())
    exhaustive, bounded = made
    assert torch.equal(exhaustive.flat.weights, bounded.flat.weights)
    assert torch.equal(exhaustive.flat.rest, bounded.flat.rest)
    assert exhaustive.accuracy == bounded.accuracy
    for a, b in zip(exhaustive.steps, bounded.steps, strict=True):
        assert a.accepted == b.accepted and (a == b or not a.accepted)


def test_the_loss_as_criterion_never_rises(tickets, network, validation, calibration):
    options = {"model": network, "validation": validation, "calibration": calibration, **CHOICES}

    def loss(pooled):
        network.load_state_dict(pooled.state_dict)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network.eval()(validation[0]), validation[1]))

    by_loss, by_accuracy = (pool(tickets, 3, criterion=kind, **options) for kind in ("loss", "accuracy"))
    assert any(step.accepted for step in by_loss.steps) and by_loss.settings["criterion"] == "loss"
    assert loss(by_loss) <= min(loss(by_accuracy), loss(pool(tickets, 3, candidates=0, **options)))
    with torch.no_grad():
        network.load_state_dict(by_loss.state_dict)
        correct = (network(validation[0]).argmax(1) == validation[1]).double().mean()
    assert by_loss.accuracy == pytest.approx(float(correct))


# --- racing -----------------------------------------------------------------------------------------------------------


def test_racing_mostly_finds_the_same(tickets, network, validation, calibration):
    options = {"model": network, "validation": validation, "calibration": calibration, **CHOICES}
    bounded, racing = (pool(tickets, search=kind, **options) for kind in ("bounded", "racing"))
    accepted = [[step.accepted for pooled in made for step in pooled.steps] for made in (bounded, racing)]
    assert sum(a == b for a, b in zip(*accepted, strict=True)) >= 0.8 * len(accepted[0])
    assert all(p.settings["search"] == "racing" and p.settings["error"] == 0.05 for p in racing)
    again = pool(tickets, search="racing", **options)
    assert all(same_network(p, q) for p, q in zip(racing, again, strict=True))


# --- what every method promises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("prune", methods.PRUNE)
def test_every_pool_has_the_targets_sparsity_and_is_scored_as_it_is(
    tickets, network, validation, calibration, method, prune
):
    for pooled in pool(
        tickets, model=network, validation=validation, calibration=calibration, method=method, prune=prune, **CHOICES
    ):
        target = tickets[pooled.round]
        assert pooled.keep == target.keep and pooled.density == target.density
        masks, state = pooled.masks, pooled.state_dict
        for name in tickets.layout.prunable:
            assert not state[name][~masks[name]].any()
        network.load_state_dict(state)
        with torch.no_grad():
            correct = int((network.eval()(validation[0]).argmax(1) == validation[1]).sum())
        assert correct == round(pooled.accuracy * len(validation[1]))
        if methods.METHODS[method].greedy and prune == "during":
            assert pooled.accuracy >= pooled.baseline_accuracy
        else:
            assert all(step.accepted for step in pooled.steps) or methods.METHODS[method].greedy


def test_swa_of_dense_networks_is_their_mean():
    states = [make_network(seed).state_dict() for seed in range(4)]
    masks = [{"0.weight": torch.ones(6, 1, 3, 3, dtype=torch.bool)}] * 4
    tickets = lpk.Tickets.from_state_dicts(states, masks)
    images = make_images(30, seed=0)
    pooled = pool(
        tickets, 1, model=make_network(), validation=images, statistics="interpolate", method="swa", **CHOICES
    )
    for name, tensor in pooled.state_dict.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([s[name] for s in states]).mean(0))
    assert [s.coefficient for s in pooled.steps] == [1 / 2, 2 / 3, 3 / 4]


def test_ema_weighs_the_network_so_far_with_its_decay():
    states = [make_network(seed).state_dict() for seed in range(3)]
    tickets = lpk.Tickets.from_state_dicts(states, [{"0.weight": torch.ones(6, 1, 3, 3)}] * 3)
    images = make_images(30, seed=0)
    pooled = pool(
        tickets, 0, model=make_network(), validation=images, statistics="interpolate", method="ema", **CHOICES
    )
    expected = 0.95 * (0.95 * states[0]["8.weight"] + 0.05 * states[1]["8.weight"]) + 0.05 * states[2]["8.weight"]
    torch.testing.assert_close(pooled.state_dict["8.weight"], expected)


def test_average_tries_one_half_only(tickets, network, validation, calibration):
    pooled = pool(
        tickets, 1, model=network, validation=validation, calibration=calibration, method="average", **CHOICES
    )
    assert {s.coefficient for s in pooled.steps} <= {0.5, None}


def test_candidates_come_nearest_first_and_denser_first():
    assert nearest_first(2, 6) == [1, 3, 0, 4, 5]
    assert nearest_first(0, 3) == [1, 2]


def test_number_of_candidates(tickets, network, validation, calibration):
    options = {"model": network, "validation": validation, "calibration": calibration, **CHOICES}
    assert [s.candidate for s in pool(tickets, 2, candidates=3, **options).steps] == [1, 3, 0]
    none = pool(tickets, 2, candidates=0, **options)
    assert none.steps == () and torch.equal(none.flat.weights, tickets[2].flat.weights)


def test_first_of_equally_good_coefficients_wins(tickets, network, validation):
    with pytest.warns(UserWarning, match="evaluate returned 1.0"):
        constant = pool(tickets, 1, model=network, evaluate=lambda model: 1.0, statistics="interpolate", **CHOICES)
    assert all(s.coefficient == 0.1 and s.accepted for s in constant.steps), "as good is accepted"


def test_evaluate_is_maximized(tickets, network):
    wanted = 0.3 * tickets[1].flat.weights + 0.7 * tickets[0].flat.weights

    def closeness(model: nn.Module) -> float:
        weights = torch.cat([p.reshape(-1) for n, p in model.named_parameters() if n in tickets.layout.prunable])
        return -float((weights - wanted).square().sum())

    options = {"model": network, "evaluate": closeness, "statistics": "interpolate", **CHOICES}
    pooled = pool(tickets, 1, candidates=1, **options)
    assert pooled.steps[0].coefficient == 0.3 and pooled.accuracy > pooled.baseline_accuracy
    assert same_network(pooled, pool(tickets, 1, candidates=1, search="exhaustive", **options))


def test_evaluate_that_returns_no_number(tickets, network):
    options = {"model": network, "statistics": "interpolate", "progress": False}
    for returned in (None, torch.zeros(2)):
        with pytest.raises(TypeError, match=r"evaluate returned a \w+; a number is needed"):
            pool(tickets, 1, evaluate=lambda model, returned=returned: returned, **options)


def test_evaluate_that_returns_nan(tickets, network):
    """A candidate loses by it; a target that has no score can't be compared with any."""
    scores = iter([0.5, float("nan"), 0.6, float("nan")])
    options = {"model": network, "statistics": "interpolate", "coefficients": (0.1, 0.5, 0.9), "progress": False}
    pooled = pool(tickets, 1, candidates=1, evaluate=lambda model: next(scores), **options)
    assert (pooled.steps[0].accuracy, pooled.accuracy) == (0.6, 0.6)
    with pytest.raises(ValueError, match="nan for the ticket of round 1"):
        pool(tickets, 1, candidates=1, evaluate=lambda model: float("nan"), **options)


def test_statistics_that_evaluate_renewed_are_kept(tickets, network, calibration):
    """The way for models that take more than a tensor."""

    def evaluate(model):
        update_bn([calibration[0]], model)
        return 1.0

    with pytest.warns(UserWarning, match="evaluate returned 1.0"):
        pooled = pool(tickets, 1, model=network, evaluate=evaluate, statistics="interpolate", **CHOICES)
    expected = copy.deepcopy(network)
    expected.load_state_dict(pooled.state_dict)
    update_bn([calibration[0]], expected)
    assert torch.equal(pooled.state_dict["1.running_mean"], expected[1].running_mean)


def test_leave_keeps_the_targets_statistics(tickets, network, validation):
    pooled = pool(tickets, 2, model=network, validation=validation, statistics="leave", **CHOICES)
    assert any(s.accepted for s in pooled.steps)
    for name in ("1.running_mean", "4.running_var"):
        assert torch.equal(pooled.state_dict[name], tickets[2].state_dict[name])


def test_integer_entries_stay_the_targets(tickets, network, validation, calibration):
    pooled = pool(tickets, 1, model=network, validation=validation, calibration=calibration, **CHOICES)
    assert torch.equal(pooled.state_dict["1.num_batches_tracked"], tickets[1].state_dict["1.num_batches_tracked"])


def test_result_does_not_depend_on_the_number_of_threads(tickets, network, validation, calibration):
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(pool(tickets, 4, model=network, validation=validation, calibration=calibration, **CHOICES))
    assert [s.accepted for s in made[0].steps] == [s.accepted for s in made[1].steps]
    assert same_network(*made) or made[0].accuracy == pytest.approx(made[1].accuracy, abs=2 / 203)


@pytest.mark.parametrize("target", [1, 4])
def test_packing_sparse_networks_changes_nothing(tickets, network, validation, calibration, target, monkeypatch):
    packed = []
    monkeypatch.setattr(ops, "pack", lambda a, b, pack=ops.pack: packed.append(pack(a, b)) or packed[-1])
    made, counts = [], []
    for share in (0.0, 0.7, 1.0):
        monkeypatch.setattr(interpolations, "PACKED_SHARE", share)
        options = {"model": network, "validation": validation, "calibration": calibration, **CHOICES}
        made.append(pool(tickets, target, **options))
        counts.append(len(packed))
        packed.clear()
    assert counts == [0, {1: 0, 4: 2}[target], 4], "tickets 2 to 4 have at most 0.7 of their weights"
    assert all(same_network(other, made[0]) and other.steps == made[0].steps for other in made)
