"""lpk.kernels under Triton's interpreter, on CPU tensors; tests/ops/test_kernels.py runs this in a process of its own.

The interpreter rounds twice where the hardware rounds once: its fma is a product and a sum, and its conversion to
bfloat16 does not round to nearest. Both are replaced by what the hardware does, as tests/reference.py defines it.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from lpk import kernels, ops
from lpk.kernels import threshold, threshold_bracket
from lpk.ops import gpu
from tests import reference
from tests.ops.problems import DISTRIBUTIONS, Problem, every_dtype, problem, same

SAMPLE = 1024
search = sys.modules["lpk.kernels.interpolate_threshold"]
rounded_by_interpreter = InterpreterBuilder.cast_impl


def fma(self, x, y, z):
    return TensorHandle(reference.fused_multiply_add(x.data, y.data, z.data), tl.float32)


def cast(self, source, target):
    if (source.dtype.scalar, target.scalar) == (tl.float32, tl.bfloat16):
        flat = reference.narrow(np.ravel(source.data), torch.bfloat16)
        return TensorHandle(flat.view(torch.int16).numpy().view(np.uint16).reshape(source.data.shape), tl.bfloat16)
    if (source.dtype.scalar, target.scalar) == (tl.bfloat16, tl.float32):
        return TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return rounded_by_interpreter(self, source, target)


@pytest.fixture(autouse=True)
def hardware_rounding(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(InterpreterBuilder, name, cast)


MODULES = [module for name, module in sys.modules.items() if name.startswith("lpk.kernels.")]


def set_everywhere(monkeypatch, name, value):
    """A constant, in every module of the kernels that knows it."""
    for module in MODULES:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def as_for_long_vectors(monkeypatch):
    """Programs take many blocks, as they do of long vectors, and few entries at once. A small sample leaves much inside
    the brackets, which there is room for."""
    small = {"SAMPLE": SAMPLE, "PROGRAMS": 3, "FALLBACK_PROGRAMS": 2, "TOGETHER": 3, "SWEEP_ROWS": 2, "BLOCK": 1024}
    small |= {"MARKED_OF": 2, "MARKED_ROWS": 2, "BIN_BITS": 5, "LIST_BLOCK": 256, "TIES_CHUNK": 4}
    small |= {"SWEEP_COLUMNS": 512, "MARKED_COLUMNS": 512, "HISTOGRAM_CHUNK": 16384}
    for name, value in small.items():
        set_everywhere(monkeypatch, name, value)


@pytest.fixture
def ways(monkeypatch):
    """What every search since then knew of its thresholds in the end, which is the way that it found them."""
    states = []
    original = threshold.counts

    def remembered(device):
        counts = original(device)
        states.append(counts.state.reshape(threshold.ROWS, -1)[threshold.STATUS.value])
        return counts

    monkeypatch.setattr(search, "counts", remembered)
    return lambda: {int(status) for state in states for status in state} - {0}


LISTED, TIED, KNOWN = (status.value for status in (threshold.LISTED, threshold.TIED, threshold.KNOWN))


def status(n):
    return torch.tensor([n])


def check(p, keeps=None, coefficients=(1, 4)):
    """Every kernel, on some of the problem's coefficients; one call finds all their thresholds."""
    n = len(p.a)
    chosen = [k for k in coefficients if k < len(p.alphas)] or [0]
    alphas = torch.tensor([p.alphas[k] for k in chosen], dtype=torch.float32)
    first_bad = status(n)
    for k, alpha in zip(chosen, alphas, strict=True):
        out = torch.full_like(p.a, 7)
        kernels.interpolate(out, p.a, p.b, alpha.reshape(1), first_bad)
        assert same(out, p.interpolated[k]), float(alpha)
    for keep in p.keeps if keeps is None else keeps:
        values, lasts = kernels.interpolate_threshold(p.a, p.b, alphas, keep, first_bad)
        assert values.dtype == torch.float32 and lasts.dtype == torch.int64
        for k, alpha, value, last in zip(chosen, alphas, values, lasts, strict=True):
            pair, mask, pruned = p.expected(k, keep)
            assert same(value, pair[0]) and torch.equal(last, pair[1]), (float(alpha), keep)
            found = value.reshape(1), last.reshape(1)
            out = torch.full_like(p.a, 7)
            kernels.interpolate_prune(out, p.a, p.b, alpha.reshape(1), *found, first_bad)
            assert same(out, pruned), (float(alpha), keep)
            rows = torch.full((3, n), 7, dtype=p.a.dtype)
            each = (number.repeat(3) for number in (alpha.reshape(1), *found))
            kernels.interpolate_prune_all(rows, p.a, p.b, *each, first_bad)
            assert all(same(row, pruned) for row in rows), (float(alpha), keep)
            out = torch.zeros(n, dtype=torch.bool)
            kernels.magnitude_mask(out, p.interpolated[k], *found, first_bad)
            assert torch.equal(out, mask), (float(alpha), keep)
    assert first_bad.item() == n


@every_dtype
@pytest.mark.parametrize("n", [0, 1, 2, 1023, 1025, 4097])
def test_sizes(n, dtype):
    check(problem("normal", dtype, n))


@every_dtype
@pytest.mark.parametrize("distribution", sorted(set(DISTRIBUTIONS) - {"normal"}))
def test_distributions(distribution, dtype):
    check(problem(distribution, dtype, 1025), [1025 // 5], [4])


@every_dtype
def test_every_coefficient_at_once(dtype):
    check(problem("two_values", dtype, 1025), [1024], range(5))


def test_more_coefficients_than_one_sweep_has():
    n, K = 600, threshold.MOST_COEFFICIENTS + 1
    a, b = problem("normal", torch.float32, n).a, problem("ties", torch.float32, n).b
    check(Problem(a, b, np.linspace(0, 1, K, dtype=np.float32).tolist(), [n // 5]), coefficients=range(K))


@every_dtype
@pytest.mark.parametrize("distribution", ["normal", "ties", "mostly_zeros", "any_exponent"])
def test_many_times_the_sample(distribution, dtype):
    n = 12 * SAMPLE + 4099
    rng = np.random.default_rng(n)
    a, b = (DISTRIBUTIONS[distribution](rng, n, dtype) for _ in range(2))
    check(Problem(a, b, [0.3], [n // 5] if distribution != "normal" else [1, n // 5, n - 1]))


def test_the_sizes_as_they_are(monkeypatch, ways):
    monkeypatch.undo()  # the rounding, too, which x = a has no use for
    x = problem("normal", torch.float32, threshold_bracket.SAMPLE + 21).a
    value, last = kernels.interpolate_threshold(x, None, torch.ones(1), len(x) // 5, status(len(x)))
    assert (value.item(), last.item()) == reference.magnitude_threshold(x, len(x) // 5)


@every_dtype
@pytest.mark.parametrize(
    ("distribution", "share", "way"),
    [
        ("normal", 0.2, LISTED),  # it is inside the bracket
        ("mostly_zeros", 0.5, TIED),  # zeros are at the lower end
        ("equal", 0.2, TIED),  # both ends are one key
        ("two_values", 0.01, TIED),  # many entries have the key of an end
    ],
)
def test_ways_to_the_threshold(distribution, share, way, dtype, ways):
    n = 4 * SAMPLE + 5
    rng = np.random.default_rng(n)
    a, b = (DISTRIBUTIONS[distribution](rng, n, dtype) for _ in range(2))
    check(Problem(a, b, [0.0, 0.3], [int(share * n)]), coefficients=(0, 1))
    assert ways() == {way}


@every_dtype
@pytest.mark.parametrize(
    "sizes",
    [
        {"MARKED_OF": 2, "LISTED_OF": 1},  # for the marked entries, more than half of all,
        {"MARKED_OF": 1, "LISTED_OF": 10**6, "BIN_BITS": 1},  # for a list of half of these,
        {"MARKED_OF": 1, "LISTED_OF": 1, "MOST_INDEXED": SAMPLE},  # for indices
    ],
)
def test_too_little_room(sizes, dtype, ways, monkeypatch):
    """Histograms of all entries find the key."""
    for name, value in (sizes | {"SAMPLE": 64}).items():
        set_everywhere(monkeypatch, name, value)
    n = 4 * SAMPLE + 5
    check(problem("normal", dtype, n), [n // 5], [1])
    assert ways() == {KNOWN}


@every_dtype
@pytest.mark.parametrize("ranks", [(SAMPLE, 1, 10), (SAMPLE, 900, 910)])
def test_a_sample_that_misleads(ranks, dtype, ways, monkeypatch):
    """The bracket misses the threshold, on either side."""
    monkeypatch.setattr(threshold_bracket, "sample_ranks", lambda n, keep: ranks)
    p = problem("normal", dtype, 4097)
    check(p, [4097 // 5], [4])
    assert ways() == {KNOWN}


@every_dtype
def test_a_bracket_of_one_key_that_misses(dtype, monkeypatch):
    monkeypatch.setattr(threshold_bracket, "sample_ranks", lambda n, keep: (SAMPLE, 1, 1))
    p = problem("two_values", dtype, 4097)
    magnitudes = p.interpolated[0].abs()
    largest = int((magnitudes == magnitudes.max()).sum())
    assert largest < 4097
    check(p, [largest, largest + 1], [0])


@every_dtype
def test_the_interpolation_without_b_is_a(dtype):
    x = problem("any_exponent", dtype, 1025).a
    one, first_bad = torch.ones(1), status(1025)
    for keep in (0, 205, 1025):
        value, last = kernels.interpolate_threshold(x, None, one, keep, first_bad)
        assert (value.item(), last.item()) == reference.magnitude_threshold(x, keep)
        out = torch.full_like(x, 7)
        kernels.interpolate_prune(out, x, None, one, value, last, first_bad)
        assert same(out, reference.magnitude_prune(x, keep))
    assert first_bad.item() == 1025


def test_the_sum_is_rounded_once():
    """Sums so near half-way between two float32 that the product's rounding, or that through float64, goes astray."""
    rng = np.random.default_rng(0)
    k, n = np.arange(1, 4), 1025
    alphas = np.ldexp(1 + np.ldexp(k, -23), -12)
    a = np.ldexp(1 - np.ldexp(rng.choice(k, n), -23), -12) * rng.choice([-1.0, 1.0], n)
    b = rng.uniform(1.01, 1.99, n)
    check(
        Problem(*(torch.from_numpy(x.astype(np.float32)) for x in (a, b)), alphas.tolist(), [n // 5]),
        coefficients=range(3),
    )


@every_dtype
def test_out_may_be_an_input(dtype):
    p = problem("normal", dtype, 1025)
    (value, last), _, pruned = p.expected(2, 205)
    alpha = torch.tensor(p.alphas[2:3])
    for place in (0, 1):
        vectors = [p.a.clone(), p.b.clone()]
        kernels.interpolate_prune(vectors[place], *vectors, alpha, value.reshape(1), last.reshape(1), status(1025))
        assert same(vectors[place], pruned)


HALF, PAIR, LARGE = torch.full((1,), 0.5), (torch.ones(1), torch.tensor([0])), 2 * 4096 + 5
REPORTING = {
    "interpolate": lambda good, bad, s: kernels.interpolate(torch.empty_like(good), bad, good, HALF, s),
    "threshold": lambda good, bad, s: kernels.interpolate_threshold(good, bad, torch.tensor([0.0, 1.0]), 3, s),
    "nothing kept": lambda good, bad, s: kernels.interpolate_threshold(bad, None, HALF, 0, s),
    "prune all": lambda good, bad, s: kernels.interpolate_prune_all(
        torch.empty(1, LARGE, dtype=good.dtype), good, bad, HALF, *PAIR, s
    ),
    "prune": lambda good, bad, s: kernels.interpolate_prune(torch.empty_like(good), good, bad, HALF, *PAIR, s),
    "mask": lambda good, bad, s: kernels.magnitude_mask(torch.empty_like(good, dtype=torch.bool), bad, *PAIR, s),
}


@every_dtype
@pytest.mark.parametrize("name", REPORTING)
def test_the_first_bad_element_is_reported(name, dtype):
    good = torch.ones(LARGE, dtype=dtype)
    for first, word in ((0, "nan"), (4096, "inf"), (LARGE - 1, "-inf")):
        bad = good.clone()
        bad[-1] = bad[min(first + 4096, LARGE - 1)] = float("nan")
        bad[first] = float(word)
        first_bad = status(LARGE)
        REPORTING[name](good, bad, first_bad)
        assert first_bad.item() == first
        first_bad.fill_(0)
        REPORTING[name](good, bad, first_bad)
        assert first_bad.item() == 0, "raised, or replaced by a later one"


def test_the_whole_way_of_a_call(monkeypatch):
    """From lpk.ops, with vectors on the CPU that are taken for vectors on a GPU."""
    first_bad = status(1025)
    monkeypatch.setattr(gpu._core, "cuda_compiled", False)
    monkeypatch.setattr(gpu, "first_bad", lambda device: first_bad)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    monkeypatch.setattr(ops, "backend", lambda x: gpu)
    p, alphas = problem("normal", torch.float32, 1025), [0.3, 0.5]
    a, b = p.a, p.b
    assert same(ops.interpolate(a, b, 0.3), reference.interpolate(a, b, 0.3))
    for keep in (0, 205):
        expected = [reference.interpolate_prune(a, b, alpha, keep) for alpha in alphas]
        thresholds = ops.interpolate_threshold(a, b, alphas, keep)
        for rows in (
            ops.interpolate_prune_all(a, b, alphas, keep),
            ops.interpolate_prune_all(a, b, alphas, keep, thresholds=thresholds),
            [ops.interpolate_prune(a, b, alpha, keep) for alpha in alphas],
        ):
            assert all(map(same, rows, expected))
        assert torch.equal(ops.magnitude_mask(a, keep), reference.magnitude_mask(a, keep))
        assert same(ops.magnitude_prune(a, keep), reference.magnitude_prune(a, keep))
    assert first_bad.item() == 1025
