"""What the operations refuse. Each error names the argument, what it was, and what would be accepted."""

import numpy as np
import pytest
import torch

from lpk import ops
from tests.ops.configurations import configurations
from tests.ops.messages import fails
from tests.ops.problems import CHUNK, every_dtype

A, B = torch.arange(8.0), torch.arange(8.0) + 1
HALF = B.half()


def pair_calls():
    """The operators of two vectors, as functions of the vectors alone."""
    return {
        "interpolate": lambda a, b, **o: ops.interpolate(a, b, 0.5, **o),
        "interpolate_threshold": lambda a, b, **o: ops.interpolate_threshold(a, b, [0.5], 2, **o),
        "interpolate_prune": lambda a, b, **o: ops.interpolate_prune(a, b, 0.5, 2, **o),
        "interpolate_prune_given": lambda a, b, **o: ops.interpolate_prune(a, b, 0.5, 2, threshold=(1.0, 3), **o),
        "interpolate_prune_all": lambda a, b, **o: ops.interpolate_prune_all(a, b, [0.1, 0.5], 2, **o),
        "interpolate_prune_all_given": lambda a, b, **o: ops.interpolate_prune_all(
            a, b, [0.1, 0.5], 2, thresholds=([1.0, 1.0], [3, 3]), **o
        ),
    }


def single_calls():
    return {
        "magnitude_prune": lambda x, **o: ops.magnitude_prune(x, 2, **o),
        "magnitude_mask": lambda x, **o: ops.magnitude_mask(x, 2, **o),
    }


@pytest.mark.parametrize("name", pair_calls())
def test_errors_of_two_vectors(name):
    call = pair_calls()[name]
    for bad, word in (
        (A.double(), "float64"),
        (A.long(), "int64"),
        (A.bool(), "bool"),
        (A.to(torch.complex64), "complex64"),
    ):
        with fails(TypeError, "a", word, "float32", "float16", "bfloat16"):
            call(bad, bad)
    with fails(TypeError, "b", "float16", "float32"):
        call(A, HALF)
    with fails(TypeError, "b", "float32", "float16"):
        call(HALF, A)
    with fails(TypeError, "a", "list", "ensor"):
        call([1.0, 2.0], A)
    with fails(TypeError, "b", "ndarray", "ensor"):
        call(A, A.numpy())
    with fails(ValueError, "b", "8", "7"):
        call(A, B[:7])
    with fails(ValueError, "a", "2"):
        call(A.view(2, 4), B.view(2, 4))
    with fails(ValueError, "a"):
        call(A.view(8, 1), B.view(8, 1))
    with fails(ValueError, "b", "contiguous"):
        call(A, torch.arange(16.0)[::2])
    with fails(ValueError, "a", "contiguous"):
        call(torch.ones(1).expand(8), A)


@pytest.mark.parametrize("name", single_calls())
def test_errors_of_one_vector(name):
    call = single_calls()[name]
    with fails(TypeError, "x", "float64", "float32", "float16", "bfloat16"):
        call(A.double())
    with fails(TypeError, "x", "list", "ensor"):
        call([1.0, 2.0, 3.0])
    with fails(ValueError, "x", "2"):
        call(A.view(2, 4))
    with fails(ValueError, "x", "contiguous"):
        call(torch.arange(16.0)[::2])


@pytest.mark.parametrize("keep", [-1, 9, 2**40, -(2**40)])
def test_errors_of_keep(keep):
    for call in (
        lambda: ops.interpolate_threshold(A, B, [0.5], keep),
        lambda: ops.interpolate_prune(A, B, 0.5, keep),
        lambda: ops.interpolate_prune(A, B, 0.5, keep, threshold=(1.0, 3)),
        lambda: ops.interpolate_prune_all(A, B, [0.5], keep),
        lambda: ops.magnitude_prune(A, keep),
        lambda: ops.magnitude_mask(A, keep),
    ):
        with fails(ValueError, "keep", str(keep), "0", "8"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, -1e-30, 1.5, float("nan"), float("inf"), float("-inf")])
def test_errors_of_alpha(alpha):
    for call in (
        lambda: ops.interpolate(A, B, alpha),
        lambda: ops.interpolate(A, B, torch.tensor(alpha)),
        lambda: ops.interpolate_prune(A, B, alpha, 2),
        lambda: ops.interpolate_prune(A, B, alpha, 2, threshold=(1.0, 3)),
    ):
        with fails(ValueError, "alpha", str(alpha)[:2], "[0, 1]"):
            call()
    for alphas in ([0.5, alpha], torch.tensor([0.5, alpha])):
        with pytest.raises(ValueError, match=rf"^alphas?\b.*{str(alpha)[:2]}.*\[0, 1\]"):
            ops.interpolate_threshold(A, B, alphas, 2)
        with pytest.raises(ValueError, match=rf"^alphas?\b.*{str(alpha)[:2]}.*\[0, 1\]"):
            ops.interpolate_prune_all(A, B, alphas, 2, thresholds=([1.0, 1.0], [3, 3]))


def test_errors_of_interpolate_prune_all():
    def call(out=None, **given):
        return ops.interpolate_prune_all(A, B, [0.1, 0.5], 2, out=out, **given)

    with fails(ValueError, "alphas", "()", "list"):
        ops.interpolate_prune_all(A, B, 0.5, 2)
    with fails(ValueError, "thresholds[0]", "(1,)", "2"):
        call(thresholds=([1.0], [3, 3]))
    with fails(ValueError, "thresholds[1]", "(3,)", "2"):
        call(thresholds=([1.0, 1.0], [3, 3, 3]))
    with fails(ValueError, "threshold", "-1.0", "at least 0"):
        call(thresholds=([1.0, -1.0], [3, 3]))
    for shape in ((8,), (16,), (8, 2), (3, 8), (2, 7)):
        with fails(ValueError, "out", str(shape), "(2, 8)"):
            call(torch.empty(shape))
    with fails(ValueError, "out", "contiguous"):
        call(torch.empty(8, 2).T)
    with fails(TypeError, "out", "float16", "float32"):
        call(torch.empty(2, 8, dtype=torch.float16))
    with fails(TypeError, "out", "ndarray"):
        call(np.empty((2, 8), np.float32))
    memory = torch.ones(40)
    for start in (1, 8, 16, 23):
        with fails(ValueError, "out", "overlap"):
            ops.interpolate_prune_all(memory[16:24], B, [0.1, 0.5], 2, out=memory[start : start + 16].view(2, 8))
    beside = ops.interpolate_prune_all(memory[:8], memory[24:32], [0.1, 0.5], 2, out=memory[8:24].view(2, 8))
    assert beside.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]] * 2
    assert ops.interpolate_prune_all(A, B, [], 2).shape == (0, 8)


def test_errors_of_out():
    calls = {
        "interpolate": lambda out: ops.interpolate(A, B, 0.5, out=out),
        "interpolate_prune": lambda out: ops.interpolate_prune(A, B, 0.5, 2, out=out),
        "interpolate_prune_given": lambda out: ops.interpolate_prune(A, B, 0.5, 2, threshold=(1.0, 3), out=out),
        "magnitude_prune": lambda out: ops.magnitude_prune(A, 2, out=out),
    }
    for call in calls.values():
        with fails(ValueError, "out", "7", "8"):
            call(torch.empty(7))
        with fails(ValueError, "out", "contiguous"):
            call(torch.empty(16)[::2])
        with fails(ValueError, "out"):
            call(torch.empty(2, 4))
        with fails((TypeError, ValueError), "out", "float64", "float32"):
            call(torch.empty(8, dtype=torch.float64))
        with fails(TypeError, "out", "ndarray", "ensor"):
            call(np.empty(8, np.float32))


@every_dtype
def test_out_must_not_overlap_an_input_partly(dtype):
    memory = torch.ones(20, dtype=dtype)
    x, behind, before, other = memory[4:12], memory[5:13], memory[3:11], torch.ones(8, dtype=dtype)
    for out in (behind, before):
        for call in (
            lambda out: ops.interpolate(x, other, 0.5, out=out),
            lambda out: ops.interpolate(other, x, 0.5, out=out),
            lambda out: ops.interpolate_prune(x, other, 0.5, 2, out=out),
            lambda out: ops.interpolate_prune(other, x, 0.5, 2, threshold=(1.0, 3), out=out),
            lambda out: ops.magnitude_prune(x, 2, out=out),
        ):
            with fails(ValueError, "out", "overlap"):
                call(out)
    assert ops.interpolate(x, other, 0.5, out=memory[12:20]).sum() == 8  # side by side is no overlap


@configurations(selections=["bracket", "histogram"], threads=[1, 2])
@every_dtype
def test_errors_of_values(dtype, configuration):
    """NaN or infinity is an error that says where the first one stands, whatever thread sees it first."""
    n = 3 * CHUNK + 1
    good = torch.ones(n, dtype=dtype)
    for first, word in ((0, "nan"), (17, "inf"), (CHUNK - 1, "-inf"), (CHUNK, "nan"), (n - 1, "inf")):
        bad = good.clone()
        bad[-1] = bad[min(first + CHUNK, n - 1)] = float("nan")
        bad[first] = float(word)
        for call in pair_calls().values():
            with fails(ValueError, f"a[{first}]", word):
                call(bad, good)
            with fails(ValueError, f"b[{first}]", word):
                call(good, bad)
        for call in single_calls().values():
            with fails(ValueError, f"x[{first}]", word):
                call(bad)


def test_a_value_that_the_coefficient_hides_is_an_error_too():
    bad = B.clone()
    bad[3] = float("nan")
    with fails(ValueError, "b[3]", "nan"):
        ops.interpolate(A, bad, 1.0)
    with fails(ValueError, "a[3]", "nan"):
        ops.interpolate_prune(bad, A, 0.0, 2)
    with fails(ValueError, "b[3]", "nan"):
        ops.interpolate_threshold(A, bad, [1.0], 0)
    with fails(ValueError, "x[3]", "nan"):
        ops.magnitude_mask(bad, 0)


def test_gradients_are_refused():
    leaf = B.clone().requires_grad_()
    for call in pair_calls().values():
        with fails(RuntimeError, "a", "grad"):
            call(leaf, A)
        with fails(RuntimeError, "b", "grad"):
            call(A, leaf)
        with torch.no_grad():
            call(A, leaf)
        call(A, leaf.detach())
    with fails(RuntimeError, "x", "grad"):
        ops.magnitude_prune(leaf, 2)
    with fails(RuntimeError, "alpha", "grad"):
        ops.interpolate(A, B, torch.tensor(0.5, requires_grad=True))
    with fails(RuntimeError, "out", "grad"):
        ops.interpolate(A, B, 0.5, out=leaf)
    assert ops.magnitude_mask(leaf, 2).tolist() == [False] * 6 + [True] * 2
