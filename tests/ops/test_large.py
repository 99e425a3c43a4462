"""More elements than 32 bits can count: indices, counts and positions must be of 64 bits everywhere.

Runs where LPK_LARGE_TESTS=1 is set and memory allows. There is no reference of the full size; the vectors are checked
piece by piece, the threshold by counting all keys, and three slices against tests/reference.py.
"""

import os
import re
from pathlib import Path

import pytest
import torch

from lpk import _core, ops
from tests import reference
from tests.ops.configurations import configured
from tests.reference import bits

N = 2**31 + 1_234_567
PIECE = 2**20
PERIOD = 2**20 + 7  # no power of two: an index that wraps around finds other values
ALPHAS = (0.3, 0.7)
SLICES = [slice(0, 2**16), slice(2**31 - 2**15, 2**31 + 2**15), slice(N - 2**16, N)]
NEEDED = 20  # GiB


def available() -> float:
    """GiB of memory; 0 where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(found[1]) / 2**20 if found else 0.0


pytestmark = [
    pytest.mark.skipif(os.environ.get("LPK_LARGE_TESTS") != "1", reason="runs where LPK_LARGE_TESTS=1 is set"),
    pytest.mark.skipif(available() < NEEDED, reason=f"needs {NEEDED} GiB of free memory"),
]


def vector(seed):
    """A block of normal values again and again, each time at another scale."""
    block = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed))
    x = torch.empty(N, dtype=torch.float16)
    for i, part in enumerate(x.split(PERIOD)):
        part.copy_(block[: len(part)] * (0.5 + i * 0.618 % 1))
    return x


def keys(x):
    """Magnitudes as integers that order like them."""
    return x.view(torch.int16) & 0x7FFF


def pieces(*vectors):
    """(first index, a piece of each vector)."""
    return zip(range(0, N, PIECE), *(v.split(PIECE) for v in vectors), strict=True)


def entries_from(x):
    """For each key, how many entries have it or a larger one."""
    counts = torch.zeros(2**15, dtype=torch.int64)
    for _, piece in pieces(x):
        counts += torch.bincount(keys(piece), minlength=2**15)
    return counts.flip(0).cumsum(0).flip(0)


def threshold_of(x, keep, counted):
    """reference.magnitude_threshold by counting."""
    key = int((counted >= keep).nonzero()[-1])
    ties = keep - int(counted[key + 1])
    for start, piece in pieces(x):
        equal = (keys(piece) == key).nonzero()[:, 0]
        if ties <= len(equal):
            return float(torch.tensor(key, dtype=torch.int16).view(torch.float16)), start + int(equal[ties - 1])
        ties -= len(equal)
    raise AssertionError("fewer ties than counted")


def survives(x, start, threshold, last):
    magnitude = x.abs()
    index = torch.arange(start, start + len(x))
    return (magnitude > threshold) | ((magnitude == threshold) & (index <= last))


def pruned(x, start, threshold, last):
    return x.where(survives(x, start, threshold, last), 0.0)


def tied_keep(counted, share):
    """Of the entries that tie at the threshold, all but three survive: the last survivor stands behind 2^31."""
    key = int((counted >= round(share * N)).nonzero()[-1])
    return int(counted[key]) - 3


@pytest.fixture(scope="module")
def pair():
    return vector(0), vector(1)


@pytest.fixture(scope="module")
def cuts(pair):
    """keep, and the threshold for each of ALPHAS."""
    x = torch.empty_like(pair[0])
    found, keep = [], 0
    for alpha in ALPHAS:
        ops.interpolate(*pair, alpha, out=x)
        counted = entries_from(x)
        keep = keep or tied_keep(counted, 0.2)
        found.append(threshold_of(x, keep, counted))
    assert found[0][1] > 2**31
    return keep, found


@pytest.fixture(scope="module")
def cut(pair):
    """keep, and the threshold of the first vector alone."""
    x, _ = pair
    counted = entries_from(x)
    keep = tied_keep(counted, 0.5)
    found = threshold_of(x, keep, counted)
    assert found[1] > 2**31
    return keep, found


# One thread: a single call of an inner loop then has more than 2^31 elements.
every_instruction_set = pytest.mark.parametrize("instruction_set", _core.instruction_sets())


@every_instruction_set
def test_interpolate(pair, instruction_set):
    x = torch.empty_like(pair[0])
    with configured(instruction_set, threads=1):
        ops.interpolate(*pair, 0.3, out=x)
    for start, piece, a, b in pieces(x, *pair):
        assert torch.equal(bits(piece), bits(ops.interpolate(a, b, 0.3))), start
    for s in SLICES:
        assert torch.equal(bits(x[s]), bits(reference.interpolate(*(v[s] for v in pair), 0.3)))


@pytest.mark.parametrize("selection", ["bracket", "histogram"])
def test_interpolate_threshold(pair, cuts, selection):
    keep, expected = cuts
    with configured(selection=selection):
        thresholds, lasts = ops.interpolate_threshold(*pair, ALPHAS, keep)
    assert list(zip(thresholds.tolist(), lasts.tolist(), strict=True)) == expected


@every_instruction_set
def test_interpolate_prune(pair, cuts, instruction_set):
    keep, expected = cuts
    x = torch.empty_like(pair[0])
    with configured(instruction_set, threads=1):
        assert ops.interpolate_prune(*pair, ALPHAS[0], keep, out=x) is x
    for start, piece, a, b in pieces(x, *pair):
        assert torch.equal(bits(piece), bits(pruned(ops.interpolate(a, b, ALPHAS[0]), start, *expected[0]))), start
    for s in SLICES:
        whole = reference.interpolate(*(v[s] for v in pair), ALPHAS[0])
        assert torch.equal(bits(x[s]), bits(pruned(whole, s.start, *expected[0])))
    assert sum(int(piece.count_nonzero()) for _, piece in pieces(x)) == keep


@every_instruction_set
def test_magnitude_mask(pair, cut, instruction_set):
    x, _ = pair
    keep, (threshold, last) = cut
    with configured(instruction_set, threads=1):
        mask = ops.magnitude_mask(x, keep)
    for start, piece, kept in pieces(x, mask):
        assert torch.equal(kept, survives(piece, start, threshold, last)), start
    assert int(mask.count_nonzero()) == keep
