"""Vectors of every kind, and what tests/reference.py says about them."""

import functools
import zlib

import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from tests import reference
from tests.reference import bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MANTISSA_BITS = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
INFINITY_PATTERN = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
CHUNK = 32768  # the kernels' unit of work; thread counts can matter only beyond it

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


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
