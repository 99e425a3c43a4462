"""The benchmarks of what a call costs: which calls there are, and that each is what it is named after."""

import inspect
import time

import pytest
import torch

from bench import results, test_calls
from bench.cases import COMPARABLE
from lpk import ops
from tests import reference

TESTS = test_calls.test_host, test_calls.test_call
NO_WORK_FOR_A_GPU = {"pack", "interpolate_prune_packed", "instruction_set", "backends"}


def test_every_function_of_ops_is_measured():
    own = {name for name, value in vars(ops).items() if inspect.isfunction(value) and value.__module__ == ops.__name__}
    assert set(COMPARABLE) == own - NO_WORK_FOR_A_GPU


@pytest.mark.parametrize("function", COMPARABLE)
def test_a_call_answers_its_question(function):
    """Of so few entries that torch.topk, of magnitudes, tells the survivors."""
    a, b = torch.randn(50), torch.randn(50)
    answer = test_calls.call_of(function, "lpk", a, b, (0.25,))()
    keep = 10
    expected = {
        "interpolate": lambda: reference.interpolate(a, b, 0.25),
        "interpolate_threshold": lambda: reference.interpolate_threshold(a, b, [0.25], keep),
        "interpolate_prune": lambda: reference.interpolate_prune(a, b, 0.25, keep),
        "interpolate_prune_all": lambda: reference.interpolate_prune(a, b, 0.25, keep)[None],
        "magnitude_prune": lambda: reference.magnitude_prune(a, keep),
        "magnitude_mask": lambda: reference.magnitude_mask(a, keep),
    }[function]()
    pairs = zip(answer, expected, strict=True) if isinstance(answer, tuple) else [(answer, expected)]
    assert all(torch.equal(own, other) for own, other in pairs)
    peer = test_calls.call_of(function, COMPARABLE[function], a, b, (0.25,))()
    if function == "interpolate":
        assert torch.allclose(peer, expected, atol=1e-6)
    else:
        assert torch.equal(peer.values.sort().values, a.abs().sort().values[-keep:])


def test_a_burst_is_timed_without_the_device():
    """bench.conftest gives every other benchmark a clock that waits."""
    own, other = ([mark.kwargs for mark in test.pytestmark if mark.name == "benchmark"] for test in TESTS)
    assert own == [{"timer": time.perf_counter}] and other == []


def test_a_call_makes_a_row():
    assert set(results.QUESTION) | {"peer", "moved", "answered"} == set(test_calls.described("host, f", "lpk", 9, 1))
