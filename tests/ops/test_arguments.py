"""What the operations take and return: signs of zeros, outputs, thresholds, coefficients."""

import numpy as np
import pytest
import torch

from lpk import ops
from tests import reference
from tests.ops.configurations import configured
from tests.ops.problems import CHUNK, every_dtype, problem, same


@every_dtype
def test_zeros_keep_their_sign_only_where_they_survive(dtype):
    x = torch.tensor([-0.0, 0.0, -0.0, -0.0, -1.0], dtype=dtype)
    for pruned in (ops.magnitude_prune(x, 3), ops.interpolate_prune(x, x, 0.5, 3)):
        assert pruned.tolist() == [0, 0, 0, 0, -1]
        assert pruned.signbit().tolist() == [True, False, False, False, True]


def test_keep_zero_prunes_all():
    x = torch.full((5,), 2.0)
    thresholds, lasts = ops.interpolate_threshold(x, x, [0.5, 1.0], 0)
    assert thresholds.tolist() == [float("inf")] * 2 and lasts.tolist() == [-1, -1]
    assert ops.interpolate_prune(x, x, 0.5, 0, threshold=(float("inf"), -1)).tolist() == [0] * 5


@every_dtype
@pytest.mark.parametrize("n", [9, 3 * CHUNK + 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_out(dtype, n, threads):
    """A result goes to a new tensor, to a given one, or on top of an input, with the same bits."""
    p = problem("normal", dtype, n)
    alpha, keep = p.alphas[0], n // 5
    pair, _, pruned = p.expected(0, keep)
    calls = {
        "interpolate": (lambda a, b, **o: ops.interpolate(a, b, alpha, **o), p.interpolated[0]),
        "prune": (lambda a, b, **o: ops.interpolate_prune(a, b, alpha, keep, **o), pruned),
        "given": (lambda a, b, **o: ops.interpolate_prune(a, b, alpha, keep, threshold=pair, **o), pruned),
    }
    with configured(threads=threads):
        for name, (call, expected) in calls.items():
            for place in ("nowhere", "new", "a", "b"):
                a, b = p.a.clone(), p.b.clone()
                out = {"nowhere": None, "new": torch.full_like(a, 7), "a": a, "b": b}[place]
                x = call(a, b, out=out)
                assert same(x, expected), (name, place)
                assert out is None or x is out, (name, place)
                assert place == "a" or same(a, p.a), (name, place)
                assert place == "b" or same(b, p.b), (name, place)
        for place in ("nowhere", "new", "x"):
            x = p.interpolated[0].clone()
            out = {"nowhere": None, "new": torch.full_like(x, 7), "x": x}[place]
            y = ops.magnitude_prune(x, keep, out=out)
            assert same(y, pruned) and (out is None or y is out), place
            assert place == "x" or same(x, p.interpolated[0]), place


def test_an_input_may_be_given_twice():
    x = problem("normal", torch.float32, 1025).a.clone()
    expected = reference.interpolate_prune(x, x, 0.3, 100)
    assert same(ops.interpolate_prune(x, x, 0.3, 100), expected)
    assert same(ops.interpolate_prune(x, x, 0.3, 100, out=x), expected)


@every_dtype
def test_a_threshold_is_numbers_or_tensors(dtype):
    p = problem("ties", dtype, 1025)
    (t, j), _, pruned = p.expected(1, 205)
    for threshold in ((t, j), (t.item(), j.item()), [t, j]):
        assert same(ops.interpolate_prune(p.a, p.b, p.alphas[1], 205, threshold=threshold), pruned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_threshold_between_two_values_of_the_dtype(dtype):
    x = torch.tensor([1.0, 1.0, 2.0, -1.0], dtype=dtype)
    assert ops.interpolate_prune(x, x, 0.5, 1, threshold=(1.00001, 3)).tolist() == [0, 0, 2, 0]
    assert ops.interpolate_prune(x, x, 0.5, 4, threshold=(0.99999, 0)).tolist() == [1, 1, 2, -1]


def test_alpha_is_rounded_to_float32():
    p = problem("normal", torch.float32, 1025)
    expected = reference.interpolate(p.a, p.b, np.float32(0.1))
    for alpha in (0.1, float(np.float32(0.1)), torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)):
        assert same(ops.interpolate(p.a, p.b, alpha), expected)
