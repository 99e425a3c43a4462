"""The reference against exact rational arithmetic, and the benchmarks' peers against the reference."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import reference


def correctly_rounded(x, y, z):
    """x·y + z in rational arithmetic, rounded once to float32, ties to even."""
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    if exact == 0:  # a sum of equal zeros keeps their sign, any other exact zero is +0
        negative = np.signbit(z) and (np.signbit(x) != np.signbit(y))
        return np.float32(-0.0) if negative and z == 0 else np.float32(0.0)
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(abs(exact) / unit) * unit  # Python rounds a Fraction half to even
    magnitude = np.float32(np.inf) if rounded >= 2**128 else np.float32(float(rounded))
    return -magnitude if exact < 0 else magnitude


def any_floats(rng, n):
    """Finite float32 values of every exponent, denormals included."""
    pattern = rng.integers(0, 0x7F800000, n, dtype=np.uint32) | (rng.integers(0, 2, n, dtype=np.uint32) << 31)
    return pattern.view(np.float32)


def near_halfway(rng, n):
    """Sums half-way between two float32 but for a term below float64's last bit: rounding twice fails."""
    k = rng.integers(1, 256, n).astype(np.float64)
    one = rng.choice([-1.0, 1.0], n)
    x = np.ldexp(1 + np.ldexp(k, -23), -12)
    y = np.ldexp(1 - np.ldexp(k, -23), -12) * one  # x·y = ±2⁻²⁴ (1 - k² 2⁻⁴⁶), just inside half a unit of z
    z = rng.integers(1 << 23, 1 << 24, n) / float(1 << 23) * rng.choice([-1.0, 1.0], n)
    shift = rng.integers(-60, 60, n)
    return (x * 2.0 ** (shift // 2)).astype(np.float32), y * 2.0 ** (shift - shift // 2), z * 2.0**shift


def near_denormal(rng, n):
    """Results around and below 2⁻¹²⁶, where float32's own last bit moves."""
    x = rng.uniform(0, 1, n)
    y = rng.standard_normal(n) * 2.0 ** rng.integers(-149, -120, n)
    z = rng.standard_normal(n) * 2.0 ** rng.integers(-149, -120, n)
    return x, y, z


def cancelling(rng, n):
    x, y = rng.uniform(0, 1, n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    z = -(x * y)
    return x, y, np.nextafter(z, np.float32(np.inf) * rng.choice([-1, 1], n).astype(np.float32))


FAMILIES = {
    "any": lambda rng, n: (rng.uniform(0, 1, n), any_floats(rng, n), any_floats(rng, n)),
    "any_product": lambda rng, n: (any_floats(rng, n), any_floats(rng, n), any_floats(rng, n)),
    "near_halfway": near_halfway,
    "near_denormal": near_denormal,
    "cancelling": cancelling,
    "signed_zeros": lambda rng, n: tuple(rng.choice([0.0, -0.0, 1.0, -1.0, 1e-45], n) for _ in range(3)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_fma_is_correctly_rounded(family):
    with np.errstate(all="ignore"):
        x, y, z = (np.asarray(v, np.float32) for v in FAMILIES[family](np.random.default_rng(0), 4000))
        expected = np.array([correctly_rounded(*xyz) for xyz in zip(x, y, z, strict=True)])
    got = reference.fused_multiply_add(x, y, z)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_the_hard_cases_are_hard():
    """Rounding the float64 sum a second time is wrong on most of them; otherwise they would test nothing."""
    x, y, z = (np.asarray(v, np.float32) for v in near_halfway(np.random.default_rng(0), 4000))
    twice_rounded = (x.astype(np.float64) * y + z).astype(np.float32)
    assert np.mean(twice_rounded != reference.fused_multiply_add(x, y, z)) > 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrowing_rounds_to_nearest_even(dtype):
    """Every upper half of a float32 with the lower halves around the tie, against PyTorch's conversion."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (upper[:, None] | lower).ravel().view(np.float32)
    x = x[np.isfinite(x)]
    expected = torch.from_numpy(x).to(dtype)
    assert torch.equal(reference.bits(reference.narrow(x, dtype)), reference.bits(expected))
    finite = expected[expected.isfinite()]
    assert torch.equal(torch.from_numpy(reference.widen(finite)), finite.float())


def test_ties_go_to_the_lower_index():
    x = torch.tensor([1.0, -2.0, 2.0, -0.0, 2.0, 0.0])
    assert reference.ranking(x).tolist() == [1, 2, 4, 0, 3, 5]
    assert reference.magnitude_mask(x, 2).tolist() == [False, True, True, False, False, False]
    assert reference.magnitude_threshold(x, 2) == (2.0, 2)
    assert reference.magnitude_threshold(x, 5) == (0.0, 3)
    assert reference.magnitude_threshold(x, 0) == (float("inf"), -1)
    pruned = reference.magnitude_prune(x, 5)
    assert pruned.signbit().tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("keep", [1, 200, 1000, 1001])
def test_peers_answer_the_same_question(keep):
    """On magnitudes without ties, and sums without rounding, every peer agrees with the reference."""
    n = 1001
    order = torch.from_numpy(np.random.default_rng(0).permutation(n))
    a = (order + 1).float() * torch.where(order % 2 == 0, 1.0, -1.0)
    b = 3 * a
    x = 2 * a
    mask, pruned = reference.magnitude_mask(x, keep), reference.magnitude_prune(x, keep)
    for interpolate in (reference.lerp_interpolate, reference.weighted_sum_interpolate):
        assert torch.equal(interpolate(a, b, 0.5), x)
    assert np.array_equal(reference.numpy_interpolate(a.numpy(), b.numpy(), 0.5), x.numpy())
    for peer in (reference.topk_prune, reference.kthvalue_prune, reference.numpy_partition_prune):
        assert torch.equal(peer(a, b, 0.5, keep), pruned)
    for peer in (reference.topk_threshold, reference.kthvalue_threshold, reference.numpy_partition_threshold):
        assert float(peer(a, b, 0.5, keep)) == reference.magnitude_threshold(x, keep)[0]
    for peer in (reference.topk_mask, reference.kthvalue_mask, reference.numpy_partition_mask):
        assert torch.equal(peer(x, keep), mask)
    assert torch.equal(reference.global_unstructured_mask(x.split([500, 501]), keep), mask)
