"""Packed vectors: what is +0 in both is left out, and what is computed from them stays the same, bit for bit."""

import itertools
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from lpk import ops
from lpk.ops import cpu
from tests import reference
from tests.ops.configurations import INSTRUCTION_SETS, configured
from tests.ops.messages import fails
from tests.ops.problems import CHUNK, DISTRIBUTIONS, Problem, every_dtype, same, small_problems
from tests.reference import bits

DENSITIES = [0, 0.02, 0.25, 1]


# --- Data ---


def sparse_pair(n, dtype, density, distribution="normal"):
    """b has that density, the mask of a is inside b's; what is pruned is +0, or now and then -0."""
    rng = np.random.default_rng(zlib.crc32(f"{n} {density}".encode()))
    inside = rng.random(n) < density
    masks = inside & (rng.random(n) < 0.8), inside
    pair = []
    for mask in masks:
        zero = np.where(rng.random(n) < 0.01 * (density > 0), -0.0, 0.0).astype(np.float32)
        x = DISTRIBUTIONS[distribution](rng, n, dtype)
        pair.append(torch.where(torch.from_numpy(mask), x, reference.narrow(zero, dtype)))
    return pair


def support_of(a, b):
    return ((bits(a) | bits(b)) != 0).numpy()


def keeps_around(m, n):
    """Fewer, as many and more than are in the support."""
    return [0, 1, m // 2, m - 1, m, m + 1, (m + n) // 2, n]


def problem(n, dtype, density, alphas=(0.0, 0.3, 1.0), **options):
    a, b = sparse_pair(n, dtype, density, **options)
    return Problem(a, b, alphas, keeps_around(int(support_of(a, b).sum()), n))


def check_pack(a, b):
    packed = ops.pack(a, b)
    support = support_of(a, b)
    assert packed.n == len(a)
    assert same(packed.a, a[torch.from_numpy(support)]) and same(packed.b, b[torch.from_numpy(support)])
    assert packed.support.numpy().tobytes() == np.packbits(support, bitorder="little").tobytes()
    before = [int(support[:i].sum()) for i in range(0, len(a), CHUNK)]
    assert packed.positions.tolist() == [*before, int(support.sum())]
    return packed


def check(p):
    packed = check_pack(p.a, p.b)
    for keep in p.keeps:
        thresholds = [None] * len(p.alphas)
        if keep <= len(packed.a):
            thresholds = zip(*ops.interpolate_threshold(packed.a, packed.b, p.alphas, keep), strict=True)
        for k, threshold in enumerate(thresholds):
            pruned = p.expected(k, keep)[2]
            alpha = p.alphas[k]
            assert same(ops.interpolate_prune_packed(packed, alpha, keep), pruned), (alpha, keep)
            given = ops.interpolate_prune_packed(packed, alpha, keep, threshold=threshold)
            assert same(given, pruned), (alpha, keep)


# --- The same bits, whatever runs ---


@every_dtype
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025, 2060])
def test_sizes(n, density, dtype):
    p = problem(n, dtype, density)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            check(p)


@every_dtype
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 100003])
def test_sizes_around_chunks(n, density, dtype):
    p = problem(n, dtype, density, alphas=[0.3])
    for instruction_set, threads in itertools.product(INSTRUCTION_SETS, (1, 2, 3)):
        with configured(instruction_set, threads=threads):
            check(p)


@every_dtype
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions(distribution, dtype):
    p = problem(2060, dtype, 0.5, distribution=distribution)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            check(p)


@hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
@hypothesis.given(small_problems(), st.sampled_from(INSTRUCTION_SETS))
def test_arbitrary_bits(p, instruction_set):
    with configured(instruction_set):
        check(p)


@every_dtype
def test_the_support_of_one_vector_alone(dtype):
    """Disjoint masks: every element of the support is from one of the two."""
    x, y = (DISTRIBUTIONS["normal"](np.random.default_rng(seed), 1025, dtype) for seed in range(2))
    first, zero = torch.arange(1025) % 3 == 0, torch.zeros((), dtype=dtype)
    a, b = torch.where(first, x, zero), torch.where(first, zero, y)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            check(Problem(a, b, [0.3], [100, 1025]))
            check(Problem(a, torch.zeros_like(a), [0.3], [100, 1025]))


@every_dtype
@pytest.mark.parametrize("offset", [0, 1, 5, 32])
def test_outputs_larger_than_the_cache(offset, dtype):
    """They may be written past the cache where their memory is aligned for that."""
    n = 2**21 + 5
    a, b = sparse_pair(n, dtype, 0.25)
    pruned = reference.interpolate_prune(a, b, 0.3, n // 5)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set, threads=2):
            out = torch.full((n + offset + 1,), 7.0, dtype=dtype)
            x = ops.interpolate_prune_packed(ops.pack(a, b), 0.3, n // 5, out=out[offset:-1])
        assert same(x, pruned) and x.data_ptr() == out[offset:].data_ptr()
        assert out[:offset].tolist() == [7] * offset and out[-1] == 7


@every_dtype
def test_packing_writes_nothing_behind_its_elements(dtype):
    """There may be those of a chunk that another thread has packed."""
    a, b = sparse_pair(2 * CHUNK + 77, dtype, 0.25)
    packed = ops.pack(a, b)
    m = len(packed.a)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            out = torch.full((m + 64,), 7.0, dtype=dtype)
            cpu.pack(out, a, packed.support, packed.positions)
            assert same(out[:m], packed.a) and out[m:].tolist() == [7] * 64


@every_dtype
def test_views_that_are_not_aligned(dtype):
    p = problem(1025, dtype, 0.25)
    for offset in (1, 3):
        a, b = (torch.cat([torch.zeros(offset, dtype=dtype), v])[offset:] for v in (p.a, p.b))
        packed = check_pack(a, b)
        shifted = [torch.cat([torch.zeros(offset, dtype=v.dtype), v])[offset:] for v in packed[:4]]
        assert same(
            ops.interpolate_prune_packed(ops.Packed(*shifted, 1025), 0.3, p.keeps[2]), p.expected(1, p.keeps[2])[2]
        )


@every_dtype
def test_flushing_denormals_changes_nothing(dtype):
    p = problem(1025, dtype, 0.25, distribution="denormals")
    for k, keep in itertools.product(range(len(p.alphas)), p.keeps):
        p.expected(k, keep)  # the reference must not run in that mode
    try:
        assert torch.set_flush_denormal(True)
        check(p)
    finally:
        torch.set_flush_denormal(False)


# --- Signs, thresholds, outputs ---


@every_dtype
def test_zeros_keep_their_sign_only_where_they_survive(dtype):
    x = torch.tensor([-0.0, 0.0, -0.0, -0.0, -1.0], dtype=dtype)
    packed = ops.pack(x, x)
    assert packed.a.signbit().tolist() == [True] * 4, "a -0 is not left out"
    for keep, signs in (
        (1, [False, False, False, False, True]),
        (3, [True, False, False, False, True]),  # the +0 before the second -0 survives in its place
        (4, [True, False, True, False, True]),
        (5, [True, False, True, True, True]),
    ):
        pruned = ops.interpolate_prune_packed(packed, 0.5, keep)
        assert pruned.tolist() == [0, 0, 0, 0, -1] and pruned.signbit().tolist() == signs, keep


@every_dtype
def test_a_tie_is_decided_by_position(dtype):
    x = torch.tensor([0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 2.0], dtype=dtype)
    packed = ops.pack(x, x)
    value, last = ops.interpolate_threshold(packed.a, packed.b, [0.5], 3)
    assert (value.item(), last.item()) == (1, 1), "a position in the packed vectors"
    for threshold in ((value, last), (1.0, 1), [value[0], last[0]]):
        pruned = ops.interpolate_prune_packed(packed, 0.5, 3, threshold=threshold)
        assert pruned.tolist() == [0, 1, 0, -1, 0, 0, 2]


@every_dtype
def test_out(dtype):
    p = problem(3 * CHUNK + 1, dtype, 0.25, alphas=[0.3])
    packed = ops.pack(p.a, p.b)
    before = [v.clone() for v in packed[:4]]
    for keep in (p.keeps[2], p.keeps[-1]):
        out = torch.full_like(p.a, 7)
        assert ops.interpolate_prune_packed(packed, torch.tensor(0.3), keep, out=out) is out
        assert same(out, p.expected(0, keep)[2])
    assert all(torch.equal(v, copy) for v, copy in zip(packed[:4], before, strict=True))


# --- Errors ---

A = torch.tensor([0.0, 1.0, 0.0, -2.0, 0.0, 0.0, 3.0, 4.0, 0.0])
PACKED = ops.pack(A, A)


def test_errors_of_pack():
    with fails(TypeError, "a", "float64", "float32", "float16", "bfloat16"):
        ops.pack(A.double(), A.double())
    with fails(TypeError, "b", "float16", "float32"):
        ops.pack(A, A.half())
    with fails(TypeError, "a", "list", "ensor"):
        ops.pack([1.0], A)
    with fails(ValueError, "b", "9", "7"):
        ops.pack(A, A[:7])
    with fails(ValueError, "b", "contiguous"):
        ops.pack(A, torch.arange(18.0)[::2])
    with fails(NotImplementedError, "a", "meta", "CPU"):
        ops.pack(A.to("meta"), A.to("meta"))
    with fails(RuntimeError, "b", "grad"):
        ops.pack(A, A.clone().requires_grad_())


@every_dtype
def test_errors_of_values(dtype):
    """Packing finds what is not finite; pruning does where it was written later; both say where in the full vector."""
    n = 3 * CHUNK + 1
    good = torch.zeros(n, dtype=dtype)
    for instruction_set, threads in itertools.product(INSTRUCTION_SETS, (1, 3)):
        for first, word in ((0, "nan"), (CHUNK - 1, "-inf"), (CHUNK, "nan"), (n - 1, "inf")):
            bad = good.clone()
            bad[-1] = bad[first] = float(word)
            with configured(instruction_set, threads=threads):
                with fails(ValueError, f"a[{first}]", word):
                    ops.pack(bad, good)
                with fails(ValueError, f"b[{first}]", word):
                    ops.pack(good, bad)
                packed = ops.pack(good + 1, good)
                packed.b[first] = float(word)
                with fails(ValueError, f"b[{first}]", word):
                    ops.interpolate_prune_packed(packed, 0.5, 1, threshold=(1.0, 0))


def test_errors_of_interpolate_prune_packed():
    with fails(TypeError, "packed", "tuple", "pack"):
        ops.interpolate_prune_packed(tuple(PACKED), 0.5, 2)
    for keep in (-1, 10):
        with fails(ValueError, "keep", str(keep), "0", "9"):
            ops.interpolate_prune_packed(PACKED, 0.5, keep)
    with fails(ValueError, "alpha", "1.5", "[0, 1]"):
        ops.interpolate_prune_packed(PACKED, 1.5, 2)
    for value in (-1.0, float("nan")):
        with fails(ValueError, "threshold", str(value)):
            ops.interpolate_prune_packed(PACKED, 0.5, 2, threshold=(value, 0))
    leaf = PACKED.b.clone().requires_grad_()
    with fails(RuntimeError, "b", "grad"):
        ops.interpolate_prune_packed(PACKED._replace(b=leaf), 0.5, 2)
    with fails(ValueError, "a", "meta", "no values"):
        ops.interpolate_prune_packed(PACKED._replace(a=PACKED.a.to("meta")), 0.5, 2)


def test_errors_of_out():
    def call(out, packed=PACKED):
        return ops.interpolate_prune_packed(packed, 0.5, 2, out=out)

    with fails(ValueError, "out", "8", "9"):
        call(torch.empty(8))
    with fails(ValueError, "out", "contiguous"):
        call(torch.empty(18)[::2])
    with fails(TypeError, "out", "float16", "float32"):
        call(torch.empty(9, dtype=torch.float16))
    with fails(TypeError, "out", "list", "ensor"):
        call([0.0] * 9)
    with fails(RuntimeError, "out", "grad"):
        call(torch.empty(9).requires_grad_())
    with fails(ValueError, "out", "meta", "no values"):
        call(torch.empty(9, device="meta"))
    memory = torch.zeros(30)
    memory[10:14] = PACKED.a
    inside = PACKED._replace(a=memory[10:14])
    for start in (2, 10, 13):
        with fails(ValueError, "out", "overlaps a"):
            call(memory[start : start + 9], inside)
    for start in (1, 14):  # side by side is no overlap
        assert torch.equal(call(memory[start : start + 9], inside), ops.interpolate_prune(A, A, 0.5, 2))


@pytest.mark.parametrize(
    "name, damaged",
    [
        ("support", PACKED.support[:1]),
        ("support", PACKED.support.long()),
        ("positions", PACKED.positions[:1]),
        ("positions", PACKED.positions.int()),
        ("positions", PACKED.positions + 1),
        ("positions", PACKED.positions - 1),
        ("positions", PACKED.positions * 2),
        ("support", torch.full_like(PACKED.support, 255)),
        ("support", torch.zeros_like(PACKED.support)),
        ("b", PACKED.b[:3]),
        ("n", 4096),
    ],
)
def test_parts_that_do_not_belong_together(name, damaged):
    packed = PACKED._replace(**{name: damaged})
    with pytest.raises(ValueError):
        ops.interpolate_prune_packed(packed, 0.5, 2, threshold=(1.0, 0))


def test_positions_inside_the_vectors_are_checked_too():
    a, b = sparse_pair(2 * CHUNK + 5, torch.float32, 0.25)
    packed = ops.pack(a, b)
    for chunk, by in itertools.product((1, 2), (-1, 1, -(10**12), 10**12)):
        positions = packed.positions.clone()
        positions[chunk] += by
        with pytest.raises(ValueError, match="hold together"):
            ops.interpolate_prune_packed(packed._replace(positions=positions), 0.5, 2, threshold=(1.0, 0))
