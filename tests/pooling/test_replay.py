"""What runs on a GPU as recorded graphs, emulated on a CPU: it must give what PyTorch gives when it is called."""

import math

import pytest
import torch
from torch import nn

from lpk.networks import replay
from lpk.pooling.pool import pool
from tests.conftest import make_network
from tests.pooling.evaluators import make_evaluator
from tests.pooling.pools import CHOICES, same_network
from tests.pooling.recording import Emulated, like_a_gpu

FEW = {**CHOICES, "coefficients": (0.2, 0.5, 0.8), "candidates": 2}


@pytest.fixture
def gpu(monkeypatch):
    like_a_gpu(monkeypatch)


def pools(tickets, network, *, target=2, **options):
    """The same pool, called and replayed."""
    made = []
    for backend in ("torch", "graph"):
        before = Emulated.recorded
        made.append(pool(tickets, target, model=network, backend=backend, **{**FEW, **options}))
        assert (Emulated.recorded > before) == (backend == "graph")
        assert made[-1].settings["backend"] == backend and made[-1].settings["graph_problem"] is None
    return made


def alike(called, replayed):
    assert called.steps == replayed.steps
    assert (called.accuracy, called.baseline_accuracy) == (replayed.accuracy, replayed.baseline_accuracy)
    assert called.forward_samples == replayed.forward_samples
    assert called.validation_samples == replayed.validation_samples
    assert same_network(called, replayed)


@pytest.mark.parametrize(
    ("search", "criterion", "autocast"),
    [
        ("exhaustive", "accuracy", None),
        ("bounded", "accuracy", "bfloat16"),
        ("racing", "accuracy", None),
        ("exhaustive", "loss", "bfloat16"),
        ("bounded", "loss", None),
    ],
)
def test_replayed_pools_are_those_of_calls(gpu, tickets, network, validation, calibration, search, criterion, autocast):
    options = {"validation": validation, "calibration": calibration, "search": search, "criterion": criterion}
    alike(*pools(tickets, network, autocast=autocast, **options))


@pytest.mark.parametrize(
    "options", [{"tolerance": 0.0}, {"statistics": "leave"}, {"prune": "after"}, {"batch_size": 64, "target": 0}]
)
def test_other_ways_of_pooling(gpu, tickets, network, validation, calibration, options):
    alike(*pools(tickets, network, **{"validation": validation, "calibration": calibration, **options}))


class Waits(nn.Module):
    """Its host reads what was computed."""

    def __init__(self):
        super().__init__()
        self.body = make_network()

    def forward(self, x):
        return self.body(x if x.sum() > -1e9 else -x)


class Counts(Waits):
    """Its host knows more than it tells: every call gives other numbers."""

    calls = 0

    def forward(self, x):
        Counts.calls += 1
        return self.body(x * (1 + 0.001 * Counts.calls))


class Draws(Waits):
    def forward(self, x):
        return self.body(nn.functional.dropout(x, 0.1, training=True))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(Waits, "synchronizing operation"), (Counts, "other numbers than a call"), (Draws, "other numbers")],
)
def test_what_cannot_be_recorded_is_called(gpu, validation, calibration, kind, problem):
    made = make_evaluator(kind(), validation=validation, calibration=calibration, batch_size=20)
    made.calibrate()
    score = made.score()
    assert made.backend == "torch" and problem in made.graph_problem
    if kind is Waits:
        expected = make_evaluator(
            kind(), validation=validation, calibration=calibration, batch_size=20, backend="torch"
        )
        expected.calibrate()
        assert expected.score()[:2] == score[:2] and expected.forward_samples == made.forward_samples
        assert torch.equal(expected.flat.rest, made.flat.rest) and expected.graph_problem is None
    with pytest.raises(ValueError, match=f"backend is 'graph', which is not possible here: .*{problem}"):
        options = {"validation": validation, "calibration": calibration, "batch_size": 20, "backend": "graph"}
        make_evaluator(kind(), **options).calibrate()


def test_a_cpu_has_no_graphs(validation):
    with pytest.raises(ValueError, match="backend is 'graph', which is not possible here: cpu has no CUDA graphs"):
        make_evaluator(make_network(), validation=validation, statistics="leave", backend="graph")
    made = make_evaluator(make_network(), validation=validation, statistics="leave", backend="torch")
    made.score()
    assert (made.backend, made.graph_problem, made.tf32) == ("torch", None, None)


def test_a_model_s_own_buffers_are_as_after_calls(gpu, validation):
    """A graph is tried out before it is used: what a forward counts must not show that."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = make_network()
            self.register_buffer("seen", torch.zeros(3))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("expanded", torch.ones(1, dtype=torch.int64).expand(4), persistent=False)

        def forward(self, x):
            self.seen += x.mean()
            self.calls += 1
            return self.body(x)

    found = []
    for backend in ("torch", "graph"):
        made = make_evaluator(Counting(), validation=validation, statistics="leave", batch_size=20, backend=backend)
        made._mixes = False
        made.score()
        made.score()
        assert made.backend == backend
        found.append([made.flat.model.seen.clone(), made.flat.model.calls.clone()])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("backend", ["torch", "graph"])
def test_every_network_is_calibrated_with_its_own_weights(monkeypatch, validation, calibration, backend):
    options = {"validation": validation, "calibration": calibration, "batch_size": 20}
    expected = make_evaluator(make_network(), backend="torch", **options)
    expected.calibrate()  # it takes a CPU's way from here on
    with monkeypatch.context() as patched:
        like_a_gpu(patched)
        made = make_evaluator(make_network(), backend=backend, **options)
        for scale in (1.0, 0.5, 3.0, -1.0):
            for evaluator in (expected, made):
                evaluator.flat.weights.mul_(scale)
                evaluator.written()
                evaluator.calibrate()
            torch.testing.assert_close(made.flat.rest, expected.flat.rest, rtol=1e-4, atol=1e-5)
            assert abs(made.score().value - expected.score().value) <= 1


def test_the_host_reads_only_where_the_bound_can_act(validation):
    reads = []
    made = make_evaluator(make_network(), validation=validation, statistics="leave", batch_size=10, backend="torch")
    read = made._tally.read
    made._tally.read = lambda: reads.append(made.validated) or read()
    worst = made.score()
    assert reads == [-(-made.total // 10) * 10]
    errors = made.total - int(worst.value)
    for most in (errors, errors - 1, errors // 2, 0):
        reads.clear()
        made.validated = 0
        score = made.score(most)
        assert (score is None) == (most < errors) and reads[0] == 10 * (most // 10 + 1)
        assert score is None or score[:2] == worst[:2]
    assert math.isfinite(worst.value)


def test_a_function_is_recorded_for_one_shape():
    total = torch.zeros(4, dtype=torch.int64)

    def add(x):
        total.add_(x.sum())
        total[1:] *= 2

    replayed = Emulated.__new__(Emulated)
    replayed.device, replayed.required, replayed.problem = torch.device("cpu"), False, None
    made = replayed.replayed(add, lambda: [total])
    expected = total.clone()
    for i, size in enumerate((3, 3, 3, 2, 3, 7, 3)):
        x = torch.arange(size) + i
        made(x)
        expected.add_(x.sum())
        expected[1:] *= 2
        assert torch.equal(total, expected)
    assert made._launch is not None


def test_errors_of_a_model_are_its_own(gpu, validation):
    class Fails(Waits):
        def forward(self, x):
            raise ZeroDivisionError("mine")

    made = make_evaluator(Fails(), validation=validation, statistics="leave", batch_size=20)
    with pytest.raises(ZeroDivisionError, match="mine"):
        made.score()


def test_same_bits_tells_zeros_and_nans_apart():
    a = torch.tensor([0.0, math.nan])
    for other, same in ((a.clone(), True), (torch.tensor([-0.0, math.nan]), False)):
        assert replay._same_bits([], [a], [other]) is same
    assert replay._same_bits([], [torch.tensor(3)], [torch.tensor(3)])
