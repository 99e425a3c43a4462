"""lpk.ops on CPU returns the bits that tests/reference.py defines, in every configuration it can run in."""

import contextlib
import functools
import itertools
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from lpk import _core, ops
from tests import reference
from tests.reference import bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MANTISSA_BITS = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
INFINITY_PATTERN = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
CHUNK = 32768  # the kernels' unit of work; thread counts can matter only beyond it

INSTRUCTION_SETS = _core.instruction_sets()
SELECTIONS = ["auto", "bracket", "histogram"]


@contextlib.contextmanager
def configured(instruction_set="auto", selection="auto", threads=None):
    before = torch.get_num_threads()
    try:
        _core.set_instruction_set(instruction_set)
        _core.set_selection(selection)
        torch.set_num_threads(threads or before)
        yield
    finally:
        _core.set_instruction_set("auto")
        _core.set_selection("auto")
        torch.set_num_threads(before)


@pytest.fixture
def configuration(request):
    with configured(*request.param):
        yield


def configurations(selections=SELECTIONS, threads=(1, 2, 3)):
    """Runs a test in each. Stacked outermost it varies fastest, so that the cached reference serves a row."""
    each = itertools.product(INSTRUCTION_SETS, selections, threads)
    return pytest.mark.parametrize("configuration", list(each), indirect=True, ids=lambda c: "-".join(map(str, c)))


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


# --- Data ---


def from_patterns(magnitude, negative, dtype):
    """A tensor from the bit patterns of its magnitudes and its signs."""
    width = np.uint32 if dtype == torch.float32 else np.uint16
    pattern = magnitude.astype(width) | (negative.astype(width) << (31 if dtype == torch.float32 else 15))
    return torch.from_numpy(pattern.view(np.int32 if dtype == torch.float32 else np.int16)).view(dtype)


def random_patterns(rng, n, dtype, below):
    return from_patterns(rng.integers(0, below, n), rng.integers(0, 2, n), dtype)


def rounded(values):
    """A distribution given as float64 values."""
    return lambda rng, n, dtype: reference.narrow(values(rng, n).astype(np.float32), dtype)


DISTRIBUTIONS = {
    "normal": rounded(lambda rng, n: rng.standard_normal(n)),
    "heavy_tailed": rounded(lambda rng, n: rng.standard_cauchy(n).clip(-6e4, 6e4)),
    "equal": rounded(lambda rng, n: np.full(n, 0.375)),
    "zeros": rounded(lambda rng, n: np.zeros(n)),
    "signed_zeros": rounded(lambda rng, n: rng.choice([0.0, -0.0], n)),
    "two_values": rounded(lambda rng, n: rng.choice([0.25, -1.5], n)),
    "ties": rounded(lambda rng, n: rng.integers(-3, 4, n) * 0.5),
    "ascending": rounded(lambda rng, n: np.sort(np.abs(rng.standard_normal(n)))),
    "descending": rounded(lambda rng, n: -np.sort(-np.abs(rng.standard_normal(n)))),
    "mostly_zeros": rounded(lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.02)),
    "channels": rounded(lambda rng, n: rng.standard_normal(n) * np.where(np.arange(n) % 64 == 0, 10, 1e-3)),
    "denormals": lambda rng, n, dtype: random_patterns(rng, n, dtype, 1 << MANTISSA_BITS[dtype]),
    "last_places": lambda rng, n, dtype: from_patterns(
        INFINITY_PATTERN[dtype] // 2 + rng.integers(-6, 7, n), rng.integers(0, 2, n), dtype
    ),
    "any_exponent": lambda rng, n, dtype: random_patterns(rng, n, dtype, INFINITY_PATTERN[dtype]),
}


class Problem:
    """Two vectors, and what the reference says about every coefficient and keep."""

    def __init__(self, a, b, alphas, keeps):
        self.a, self.b, self.alphas = a, b, alphas
        self.keeps = sorted({k for k in keeps if 0 <= k <= len(a)})
        self.interpolated = [reference.interpolate(a, b, alpha) for alpha in alphas]
        self.ranked = [reference.ranking(x) for x in self.interpolated]
        self.answers = {}

    def expected(self, k, keep):
        """The threshold pair, the mask and the pruned vector for the k-th coefficient."""
        if (k, keep) not in self.answers:
            x, ranked = self.interpolated[k], self.ranked[k]
            self.answers[k, keep] = (
                tuple(torch.tensor(part) for part in reference.magnitude_threshold(x, keep, ranked)),
                reference.magnitude_mask(x, keep, ranked),
                reference.magnitude_prune(x, keep, ranked),
            )
        return self.answers[k, keep]


@functools.lru_cache(maxsize=64)
def problem(distribution, dtype, n):
    rng = np.random.default_rng(zlib.crc32(f"{distribution} {n}".encode()))
    a, b = (DISTRIBUTIONS[distribution](rng, n, dtype) for _ in range(2))
    if n > CHUNK // 2:  # where every call costs more
        return Problem(a, b, [rng.random()], [n // 5, n - 1])
    return Problem(a, b, [0.0, 0.05, 0.5, 1.0, rng.random()], [0, 1, n // 5, n - 1, n])


def same(got, expected):
    return got.dtype == expected.dtype and torch.equal(bits(got), bits(expected))


def check(p):
    """Every operator, on every coefficient and keep of the problem."""
    for k, alpha in enumerate(p.alphas):
        assert same(ops.interpolate(p.a, p.b, alpha), p.interpolated[k]), alpha
    for keep in p.keeps:
        thresholds, lasts = ops.interpolate_threshold(p.a, p.b, p.alphas, keep)
        rows = ops.interpolate_prune_all(p.a, p.b, p.alphas, keep)
        given_rows = ops.interpolate_prune_all(p.a, p.b, p.alphas, keep, thresholds=(thresholds, lasts))
        assert rows.shape == given_rows.shape == (len(p.alphas), len(p.a))
        assert thresholds.dtype == torch.float32 and lasts.dtype == torch.int64
        for k, alpha in enumerate(p.alphas):
            pair, mask, pruned = p.expected(k, keep)
            assert same(thresholds[k], pair[0]) and torch.equal(lasts[k], pair[1]), (alpha, keep)
            assert same(ops.interpolate_prune(p.a, p.b, alpha, keep), pruned), (alpha, keep)
            given = ops.interpolate_prune(p.a, p.b, alpha, keep, threshold=(thresholds[k], lasts[k]))
            assert same(given, pruned), (alpha, keep)
            assert same(rows[k], pruned) and same(given_rows[k], pruned), (alpha, keep)
            assert same(ops.magnitude_prune(p.interpolated[k], keep), pruned), (alpha, keep)
            assert torch.equal(ops.magnitude_mask(p.interpolated[k], keep), mask), (alpha, keep)


# --- The same bits, whatever runs ---


@configurations(threads=[1])
@every_dtype
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions(distribution, dtype, configuration):
    check(problem(distribution, dtype, 1025))


@configurations(selections=["bracket", "histogram"])
@every_dtype
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_over_several_chunks(distribution, dtype, configuration):
    check(problem(distribution, dtype, 2 * CHUNK + 1))


@configurations(threads=[1])
@every_dtype
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 509, 1023, 4097, 10007])
def test_sizes(n, dtype, configuration):
    check(problem("normal", dtype, n))


@configurations(threads=[2])
@every_dtype
@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 100003])
def test_sizes_around_chunks(n, dtype, configuration):
    check(problem("normal", dtype, n))


@configurations(selections=["auto"], threads=[1])
def test_the_sum_is_rounded_once(configuration):
    """Sums so near half-way between two float32 that rounding through float64, say, goes astray."""
    rng = np.random.default_rng(0)
    k, n = np.arange(1, 6), 1025
    alphas = np.ldexp(1 + np.ldexp(k, -23), -12)
    # alpha_k a = ±2⁻²⁴ (1 - k² 2⁻⁴⁶) for a fifth of the entries, against a last bit of 2⁻²³ in beta b
    a = np.ldexp(1 - np.ldexp(rng.choice(k, n), -23), -12) * rng.choice([-1.0, 1.0], n)
    b = rng.uniform(1.01, 1.99, n)
    a, b = (torch.from_numpy(x.astype(np.float32)) for x in (a, b))
    check(Problem(a, b, alphas.tolist(), [0, 1, n // 5, n]))


# What the sampled entries of a hostile vector are multiplied with: all of them, or every other one.
MISLEADING = {"high": (1000, 1000), "low": (1e-3, 1e-3), "zero": (0, 0), "around": (1000, 0)}


@functools.lru_cache(maxsize=2)
def hostile_problem(kind, dtype):
    """Vectors whose sampled entries say nothing about the others: a bracket misses, or holds nearly all."""
    n = 2**18 + 3
    rng = np.random.default_rng(n)
    sampled = np.asarray(_core.sample_positions(n), dtype=np.int64)
    a, b = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    for x in a, b:
        x[sampled[::2]] *= MISLEADING[kind][0]
        x[sampled[1::2]] *= MISLEADING[kind][1]
    a, b = reference.narrow(a, dtype), reference.narrow(b, dtype)
    return Problem(a, b, [0.3], [1, len(sampled) + 1, n // 2, n - 1])


@configurations(selections=["bracket"], threads=[1, 3])
@every_dtype
@pytest.mark.parametrize("kind", MISLEADING)
def test_a_sample_that_misleads(kind, dtype, configuration):
    check(hostile_problem(kind, dtype))


def test_more_entries_than_float32_can_count():
    n = 2**24 + 1
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, generator=generator) for _ in range(2))
    alpha, keep = 0.3, n // 5
    x = reference.interpolate(a, b, alpha)
    ranked = reference.ranking(x)
    pair, pruned = reference.magnitude_threshold(x, keep, ranked), reference.magnitude_prune(x, keep, ranked)
    thresholds, lasts = ops.interpolate_threshold(a, b, [alpha], keep)
    assert (thresholds.item(), lasts.item()) == pair
    assert same(ops.interpolate_prune(a, b, alpha, keep), pruned)
    assert same(ops.magnitude_prune(x, keep), pruned)
    ones = torch.ones(n)
    assert int(ops.magnitude_mask(ones, n - 1).sum()) == n - 1
    assert ops.interpolate_threshold(ones, ones, [0.5], n)[1].item() == n - 1


@st.composite
def small_problems(draw):
    dtype = draw(st.sampled_from(DTYPES))
    n = draw(st.integers(0, 200))
    infinity = INFINITY_PATTERN[dtype]
    magnitudes = st.one_of(st.sampled_from([0, 1, infinity - 1]), st.integers(0, infinity - 1))
    vectors = [
        from_patterns(
            draw(hypothesis.extra.numpy.arrays(np.uint32, n, elements=magnitudes)),
            draw(hypothesis.extra.numpy.arrays(np.uint8, n, elements=st.integers(0, 1))),
            dtype,
        )
        for _ in range(2)
    ]
    alphas = draw(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=3))
    return Problem(*vectors, alphas, [draw(st.integers(0, n))])


@hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
@hypothesis.given(small_problems(), st.sampled_from(INSTRUCTION_SETS), st.sampled_from(SELECTIONS))
def test_arbitrary_bits(p, instruction_set, selection):
    with configured(instruction_set, selection):
        check(p)


@every_dtype
def test_many_coefficients_in_one_sweep(dtype):
    """More coefficients than a search uses, repeated ones and any order among them."""
    rng = np.random.default_rng(0)
    a, b = (DISTRIBUTIONS["normal"](rng, CHUNK + 5, dtype) for _ in range(2))
    alphas = [*rng.random(30), 0.5, 0.5, 1.0, 0.0]
    expected = reference.interpolate_threshold(a, b, alphas, 1234)
    for given in (alphas, tuple(alphas), torch.tensor(alphas, dtype=torch.float32)):
        got = ops.interpolate_threshold(a, b, given, 1234)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@configurations(selections=["bracket"], threads=[1])
@pytest.mark.parametrize(("first", "alpha"), [(0, 0.5), (0x40000000 - 30, 3 * 2**-26)])
def test_interpolations_that_rounding_moves_out_of_the_interval_between_both(first, alpha, configuration):
    """As the products of denormals are; or where alpha and 1 - alpha, rounded, sum to less than 1."""
    rng = np.random.default_rng(0)
    a, b = (from_patterns(first + rng.integers(0, 60, 20_000), np.zeros(20_000, int), torch.float32) for _ in range(2))
    assert ((interpolated := reference.interpolate(a, b, alpha)) > torch.maximum(a, b)).any() or (
        interpolated < torch.minimum(a, b)
    ).any()
    check(Problem(a, b, [alpha], range(500, 20_000, 500)))


@every_dtype
def test_views_that_are_not_aligned(dtype):
    p = problem("normal", dtype, 1025)
    for offset in (1, 3):
        a, b = (torch.cat([torch.zeros(offset, dtype=dtype), v])[offset:] for v in (p.a, p.b))
        out = torch.empty(1025 + offset, dtype=dtype)[offset:]
        x = ops.interpolate_prune(a, b, p.alphas[1], 205, out=out)
        assert same(x, p.expected(1, 205)[2])


@functools.lru_cache(maxsize=1)
def large_problem(dtype):
    n = 2**21 + 5
    a, b = (DISTRIBUTIONS["normal"](np.random.default_rng(seed), n, dtype) for seed in range(2))
    return Problem(a, b, [0.3], [n // 5])


@configurations(selections=["auto"], threads=[2])
@every_dtype
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_outputs_larger_than_the_cache(offset, dtype, configuration):
    """They may be written past the cache, in lines that start where the output's memory does not."""
    p = large_problem(dtype)
    keep = p.keeps[0]
    out = torch.full((len(p.a) + offset + 1,), 7.0, dtype=dtype)
    x = ops.interpolate_prune(p.a, p.b, p.alphas[0], keep, threshold=p.expected(0, keep)[0], out=out[offset:-1])
    assert same(x, p.expected(0, keep)[2])
    assert out[:offset].tolist() == [7] * offset and out[-1] == 7
    memory = torch.full((3 * len(p.a) + offset + 1,), 7.0, dtype=dtype)
    rows = memory[offset:-1].view(3, -1)
    assert ops.interpolate_prune_all(p.a, p.b, [p.alphas[0], 1.0, p.alphas[0]], keep, out=rows) is rows
    assert same(rows[0], x) and same(rows[1], ops.magnitude_prune(p.a, keep)) and same(rows[2], x)
    assert memory[:offset].tolist() == [7] * offset and memory[-1] == 7


def test_calls_from_several_python_threads():
    p = problem("normal", torch.float32, 3 * CHUNK + 1)
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: ops.interpolate_prune(p.a, p.b, p.alphas[0], p.keeps[0]), range(40))
        assert all(same(x, p.expected(0, p.keeps[0])[2]) for x in results)


@configurations(threads=[1, 2])
@every_dtype
def test_flushing_denormals_changes_nothing(dtype, configuration):
    """A process may run with denormals flushed to zero; the kernels count them, and leave the mode."""
    problems = [problem("denormals", dtype, n) for n in (1025, 2 * CHUNK + 1)]
    for p in problems:
        for k, keep in itertools.product(range(len(p.alphas)), p.keeps):
            p.expected(k, keep)  # the reference must not run in that mode
    try:
        assert torch.set_flush_denormal(True)
        for p in problems:
            check(p)
        assert (torch.tensor([1e-40]) * 1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


# --- Signs, outputs, thresholds ---


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


# --- Errors: each names the argument, what it was, and what would be accepted ---

A, B = torch.arange(8.0), torch.arange(8.0) + 1
HALF = B.half()
OVERLAPPING = torch.zeros(9)


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


def fails(error, name, *words):
    """An error whose message starts with the argument's name and has all the words."""
    others = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match=rf"(?s)^(?={re.escape(name)}(?!\w)){others}")


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


# --- As PyTorch operators ---

HALFWAY, PAIR, OUT = torch.tensor(0.5), (torch.tensor(4.5), torch.tensor(7)), torch.zeros(8)
PACKED = ops.pack(A * (A > 2), B * (B > 2))
OPERATORS = {
    "interpolate": (A, B, HALFWAY),
    "interpolate_out": (A, B, HALFWAY, OUT),
    "interpolate_threshold": (A, B, HALFWAY.reshape(1), 3),
    "interpolate_prune": (A, B, HALFWAY, *PAIR),
    "interpolate_prune_out": (A, B, HALFWAY, *PAIR, OUT),
    "interpolate_prune_all": (A, B, HALFWAY.reshape(1), *(part.reshape(1) for part in PAIR)),
    "interpolate_prune_all_out": (A, B, HALFWAY.reshape(1), *(part.reshape(1) for part in PAIR), torch.zeros(1, 8)),
    "pack": (A, B),
    "interpolate_prune_packed": (*PACKED, HALFWAY, 3, *PAIR),
    "interpolate_prune_packed_out": (*PACKED, HALFWAY, 3, *PAIR, OUT),
    "magnitude_prune": (A, 3),
    "magnitude_prune_out": (A, 3, OUT),
    "magnitude_mask": (A, 3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.lpk, name).default, OPERATORS[name])


def test_every_operator_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    registered = {name for name in names if name.startswith(("lpk::interpolate", "lpk::pack", "lpk::magnitude"))}
    assert registered == {f"lpk::{name}" for name in OPERATORS}


def test_torch_compile():
    p = problem("normal", torch.float32, 1025)
    alpha, keep = p.alphas[1], 205

    def step(a, b, scratch):
        thresholds, lasts = ops.interpolate_threshold(a, b, [0.05, 0.5], keep)
        x = ops.interpolate_prune(a, b, alpha, keep, threshold=(thresholds[0], lasts[0]))
        ops.interpolate(a, b, alpha, out=scratch)
        x = ops.interpolate_prune_all(a, b, [0.05, 0.5, alpha], keep)[2] + 0 * x
        return x * 2, ops.magnitude_prune(scratch, keep), ops.magnitude_mask(x, keep), thresholds

    expected_scratch = p.interpolated[1]
    pruned = p.expected(1, keep)[2]
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        scratch = torch.zeros_like(p.a)
        twice, again, mask, thresholds = torch.compile(step, fullgraph=True, backend=backend)(p.a, p.b, scratch)
        assert same(scratch, expected_scratch)
        assert same(twice, pruned * 2) and same(again, pruned)
        assert torch.equal(mask, reference.magnitude_mask(pruned, keep))
        assert same(thresholds[0], p.expected(1, keep)[0][0])


# --- The process ---


def test_backends_say_what_runs():
    assert "cpu" in ops.backends()


def test_unknown_configurations_are_errors():
    with pytest.raises(ValueError, match="nonsense"):
        _core.set_instruction_set("nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        _core.set_selection("nonsense")


def test_one_openmp_runtime():
    """A second OpenMP runtime in the process slows every parallel region of both."""
    program = (
        "import lpk, lpk.ops, re, torch\n"
        "lpk.ops.magnitude_mask(torch.randn(1 << 20), 1000)\n"
        "maps = open('/proc/self/maps').read()\n"
        r"print(*sorted(set(re.findall(r'/\S*/(?:libgomp|libiomp|libomp)\S*', maps))))"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/maps")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(run.stdout.split()) == 1, run.stdout
