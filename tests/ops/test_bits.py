"""lpk.ops on CPU returns the bits that tests/reference.py defines, in every configuration it can run in."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from lpk import _core, ops
from tests import reference
from tests.ops.configurations import INSTRUCTION_SETS, SELECTIONS, configurations, configured
from tests.ops.problems import (
    CHUNK,
    DISTRIBUTIONS,
    Problem,
    every_dtype,
    from_patterns,
    problem,
    same,
    small_problems,
)


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
