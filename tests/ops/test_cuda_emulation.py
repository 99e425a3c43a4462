"""The logic of the CUDA kernels, run on a CPU: see tests/ops/emulation/cuda.h. What only a GPU can show (speed, races,
graph capture) is tested where there is one."""

import ctypes
import itertools
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from tests import reference
from tests.ops.vectors import vector

ROOT = Path(__file__).parents[2]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ALPHAS = (0.05, 0.5, 0.7)
NEVER = 2**63 - 1
SAMPLE = 2**17  # of one coefficient


def cuda_headers() -> Path | None:
    """Of a CUDA toolkit, or those that PyTorch's wheel brings."""
    nvcc = shutil.which("nvcc") or ""
    places = [Path(nvcc).resolve().parents[1] / "include" if nvcc else None, Path("/usr/local/cuda/include")]
    places += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/include"))
    return next((p for p in places if p and (p / "cuda_fp16.h").exists() and (p / "cuda_runtime_api.h").exists()), None)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    headers, compiler = cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs g++ and the CUDA headers")
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-ffp-contract=off", "-w"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'ops' / 'emulation'}", f"-I{headers}"]
    source = ROOT / "tests" / "ops" / "emulation" / "kernels.cpp"
    subprocess.run([compiler, *flags, *include, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.sample_position.restype = ctypes.c_int64
    return loaded


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def common(a, b, bad):
    return pointer(a), pointer(b), ctypes.c_int64(a.numel()), DTYPES[a.dtype], pointer(bad)


def search(emulated, values, last, a, b, bad, alphas, keep, on_device=True):
    """Calls the kernels; returns how many entries the sweep stored, -1 if some threshold was not among them."""
    stored = ctypes.c_int64()
    emulated.interpolate_threshold(
        pointer(values), pointer(last), *common(a, b, bad), pointer(alphas), on_device, len(alphas),
        ctypes.c_int64(keep), ctypes.byref(stored),
    )  # fmt: skip
    return stored.value


def thresholds(emulated, a, b, alphas, keep, by_bracket=False, by_counts=False):
    """With the threads in either order, which must not matter; by_counts: among what the sweep stored; by_bracket: in
    brackets that are as narrow as meant, too."""
    alphas = torch.tensor(alphas, dtype=torch.float32)
    bad, results = torch.tensor([NEVER]), []
    width = 9 * (keep * (1 - keep / a.numel())) ** 0.5 + 8  # where the sample is the whole vector
    for backwards in (True, False):
        values, last = torch.zeros(len(alphas)), torch.zeros(len(alphas), dtype=torch.int64)
        emulated.run_backwards(backwards)
        stored = search(emulated, values, last, a, b, bad, alphas, keep, on_device=backwards)
        assert not by_bracket or 0 < stored <= len(alphas) * width
        assert not by_counts or stored > 0
        results.append((values, last))
    assert bad.item() == NEVER
    assert all(map(torch.equal, *results))
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind", ["normal", "equal", "zeros", "mostly-zero", "two", "ties", "sorted", "denormal", "wide"]
)
def test_thresholds(emulated, kind, dtype):
    n = 20_011
    a, b = vector(kind, n, 0, dtype), vector(kind, n, 1, dtype)
    for keep in (1, n // 50, n // 5, n - 1, n):
        found = kind == "normal" and dtype == torch.float32 and n // 50 <= keep <= n // 5
        expected_values, expected_last = reference.interpolate_threshold(a, b, ALPHAS, keep)
        for count in (len(ALPHAS), 1):  # a block for each; all blocks for one, which has a sweep of its own
            values, last = thresholds(emulated, a, b, ALPHAS[:count], keep, by_bracket=found)
            assert torch.equal(values, expected_values[:count]) and torch.equal(last, expected_last[:count]), keep


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-42, 1e-33, 1e-3, 1.0, 1e30, 1e34])
def test_where_the_sweep_must_not_be_rough(emulated, scale, alpha):
    """It computes roughly first: entries that are far larger than the threshold, or cancel each other near it, and
    magnitudes at either end of float32 need a closer look."""
    n, near = 9001, 2000
    a, b = (vector("normal", n, seed, torch.float32).double() for seed in (11, 12))
    a[::7] *= 80
    a[:near] = torch.logspace(-1, 3, near, dtype=torch.float64)
    size = 1 + torch.linspace(-1e-5, 1e-5, near)[torch.randperm(near, generator=torch.Generator().manual_seed(0))]
    b[:near] = (size - alpha * a[:near]) / (1 - alpha)
    a, b = (a * scale).float(), (b * scale).float()
    keep = int((reference.interpolate(a, b, alpha).abs().double() >= scale).sum())  # the bracket lies among those near
    for count in (1, 2):  # one has a sweep of its own
        values, last = thresholds(emulated, a, b, [alpha] * count, keep)
        expected = reference.interpolate_threshold(a, b, [alpha] * count, keep)
        assert torch.equal(values, expected[0]) and torch.equal(last, expected[1])


def test_differences_that_overflow(emulated):
    a, b = (3e38 * torch.rand(2, 5000, generator=torch.Generator().manual_seed(0)) + 1e37).unbind()
    a[::2] *= -1
    values, last = thresholds(emulated, a, b, ALPHAS, 1000, by_counts=True)
    expected = reference.interpolate_threshold(a, b, ALPHAS, 1000)
    assert torch.equal(values, expected[0]) and torch.equal(last, expected[1])


@pytest.mark.parametrize("n", [1, 2, 31, 257, 2047, 2049, 8193])
def test_sizes(emulated, n):
    a, b = vector("normal", n, 2, torch.float32), vector("normal", n, 3, torch.float32)
    for keep, count in itertools.product({1, (n + 1) // 2, n}, (1, len(ALPHAS))):
        values, last = thresholds(emulated, a, b, ALPHAS[:count], keep)
        expected = reference.interpolate_threshold(a, b, ALPHAS[:count], keep)
        assert torch.equal(values, expected[0]) and torch.equal(last, expected[1])


def test_more_coefficients_than_one_sweep_takes(emulated):
    a, b = vector("normal", 5000, 2, torch.float32), vector("ties", 5000, 3, torch.float32)
    alphas = torch.linspace(0, 1, 19).tolist()
    values, last = thresholds(emulated, a, b, alphas, 700)
    expected = reference.interpolate_threshold(a, b, alphas, 700)
    assert torch.equal(values, expected[0]) and torch.equal(last, expected[1])


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
def test_a_sample_that_misleads(emulated, factor):
    """Larger than the sample, with all sampled entries far from the others: the bracket misses."""
    n = 2 * SAMPLE - 9
    x = vector("normal", n, 4, torch.float32)
    where = torch.tensor([emulated.sample_position(*map(ctypes.c_int64, (n, SAMPLE, i))) for i in range(SAMPLE)])
    assert where.unique().numel() == SAMPLE and int(where.max()) < n
    x[where] *= factor
    for keep in (n // 10, n // 2):
        values, last = thresholds(emulated, x, None, [1.0], keep)
        expected = reference.magnitude_threshold(x, keep)
        assert (values.item(), last.item()) == (float(expected[0]), int(expected[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise_kernels(emulated, dtype):
    n, keep, alpha = 4099, 700, 0.3
    a, b = vector("ties", n, 5, dtype), vector("ties", n, 6, dtype)
    bad, out = torch.tensor([NEVER]), torch.empty_like(a)
    emulated.interpolate(pointer(out), *common(a, b, bad), ctypes.c_float(alpha))
    assert torch.equal(reference.bits(out), reference.bits(reference.interpolate(a, b, alpha)))
    value, last = thresholds(emulated, a, b, [alpha], keep)
    coefficient = torch.tensor(alpha)
    emulated.interpolate_prune(pointer(out), *common(a, b, bad), pointer(coefficient), pointer(value), pointer(last))
    assert torch.equal(reference.bits(out), reference.bits(reference.interpolate_prune(a, b, alpha, keep)))
    values, lasts = thresholds(emulated, a, b, ALPHAS, keep)
    rows, alphas = a.new_empty(len(ALPHAS), n), torch.tensor(ALPHAS)
    numbers = pointer(alphas), True, pointer(values), pointer(lasts), len(ALPHAS)
    emulated.interpolate_prune_all(pointer(rows), *common(a, b, bad), *numbers)
    for row, each in zip(rows, ALPHAS, strict=True):
        assert torch.equal(reference.bits(row), reference.bits(reference.interpolate_prune(a, b, each, keep)))
    value, last = thresholds(emulated, a, None, [1.0], keep)
    mask = torch.empty(n, dtype=torch.bool)
    emulated.magnitude_mask(
        pointer(mask), pointer(a), ctypes.c_int64(n), DTYPES[dtype], pointer(bad),
        ctypes.c_float(value.item()), ctypes.c_int64(last.item()),
    )  # fmt: skip
    assert torch.equal(mask, reference.magnitude_mask(a, keep)) and bad.item() == NEVER


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("n", [4096, 4097])  # the longest one is cut by a kernel of its own
def test_thresholds_found_on_the_way(emulated, n, kind, dtype):
    a, b = vector(kind, n, 5, dtype), vector(kind, n, 6, dtype)
    bad, phases, rows = torch.tensor([NEVER]), ctypes.c_int(), torch.empty(3, n, dtype=dtype)
    for keep in (1, n // 5, n):
        for alphas, on_device in ((ALPHAS, True), (ALPHAS, False), (ALPHAS[1:2], True), (ALPHAS[1:2], False)):
            coefficients = torch.tensor(alphas)
            emulated.find_and_prune(
                pointer(rows), *common(a, b, bad), pointer(coefficients), on_device, len(alphas),
                ctypes.c_int64(keep), ctypes.byref(phases),
            )  # fmt: skip
            for row, alpha in zip(rows, alphas, strict=False):
                assert torch.equal(reference.bits(row), reference.bits(reference.interpolate_prune(a, b, alpha, keep)))
            assert kind != "normal" or dtype != torch.float32 or keep != n // 5 or phases.value == 8 + (n <= 4096)
        mask = torch.empty(n, dtype=torch.bool)
        emulated.find_and_mask(
            pointer(mask), pointer(a), ctypes.c_int64(n), DTYPES[dtype], pointer(bad), ctypes.c_int64(keep)
        )
        assert torch.equal(mask, reference.magnitude_mask(a, keep))
    assert bad.item() == NEVER


def test_one_coefficient_of_a_short_vector_needs_no_bracket(emulated):
    """Three phases find one: a histogram of the sample, those near its ends, and the bracket."""
    phases, keep, rows = ctypes.c_int(), ctypes.c_int64(50), torch.empty(3, 257)
    for n, count, expected in ((256, 1, 6), (257, 1, 9), (256, 3, 9)):
        a, b = vector("normal", n, 5, torch.float32), vector("normal", n, 6, torch.float32)
        alphas, bad = torch.tensor(ALPHAS), torch.tensor([NEVER])
        emulated.find_and_prune(
            pointer(rows), *common(a, b, bad), pointer(alphas), True, count, keep, ctypes.byref(phases)
        )
        assert phases.value == expected
        for k, row in enumerate(rows.flatten()[: count * n].view(count, n)):
            assert torch.equal(reference.bits(row), reference.bits(reference.interpolate_prune(a, b, ALPHAS[k], 50)))


def test_more_rows_than_one_launch_writes(emulated):
    a, b = vector("normal", 1000, 5, torch.float32), vector("normal", 1000, 6, torch.float32)
    alphas, bad, rows = torch.linspace(0, 1, 19), torch.tensor([NEVER]), torch.empty(19, 1000)
    emulated.find_and_prune(
        pointer(rows), *common(a, b, bad), pointer(alphas), True, 19, ctypes.c_int64(200), ctypes.byref(ctypes.c_int())
    )
    for row, alpha in zip(rows, alphas.tolist(), strict=True):
        assert torch.equal(reference.bits(row), reference.bits(reference.interpolate_prune(a, b, alpha, 200)))


@pytest.mark.parametrize("apart", [1, 2])
def test_magnitudes_that_begin_with_the_same_bits(emulated, apart):
    """As many as there is no room for, in bins of the sample that are found narrow enough; or, closer together, in bins
    that are divided further."""
    n, near = 20_011, 4000
    x = torch.cat([torch.full((500,), 2.0), torch.zeros(n - 500 - near), torch.zeros(near)])
    ones = torch.ones(near).view(torch.int32) + apart * torch.arange(near, dtype=torch.int32)
    x[-near:] = ones.view(torch.float32)
    for keep in (1500, 2000, 2500):
        values, last = thresholds(emulated, x, None, [1.0], keep, by_counts=apart == 1)
        assert (values.item(), last.item()) == reference.magnitude_threshold(x, keep)


def test_pruned_in_place(emulated):
    a, b = vector("normal", 3000, 5, torch.float32), vector("normal", 3000, 6, torch.float32)
    bad, alpha, expected = torch.tensor([NEVER]), torch.tensor([0.3]), reference.interpolate_prune(a, b, 0.3, 700)
    keep = ctypes.c_int64(700)
    emulated.find_and_prune(pointer(b), *common(a, b, bad), pointer(alpha), True, 1, keep, ctypes.byref(ctypes.c_int()))
    assert torch.equal(reference.bits(b), reference.bits(expected))


def test_first_bad_element_is_reported(emulated):
    a, b = vector("normal", 5000, 7, torch.float32), vector("normal", 5000, 8, torch.float32)
    b[4000], a[3456] = float("nan"), float("inf")
    bad, out, alphas = torch.tensor([NEVER]), torch.empty_like(a), torch.tensor([1.0, 0.0])
    emulated.interpolate(pointer(out), *common(a, b, bad), ctypes.c_float(0.5))
    assert bad.item() == 3456
    bad.fill_(NEVER)
    values, last = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    search(emulated, values, last, a, b, bad, alphas, 100)
    assert bad.item() == 3456


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_weights_lead_nowhere(emulated, dtype):
    """The counts are wrong then: the search must neither leave the vectors nor go on for ever."""
    n, nan, inf = 5000, float("nan"), float("inf")
    one = vector("normal", n, 9, dtype)
    one[3456] = inf
    half = torch.zeros(n, dtype=dtype)
    half[: n // 2] = nan
    sparse = vector("normal", n, 10, dtype) * (torch.arange(n) % 3 == 0)
    sparse[1:600:3] = nan
    for x, keep in ((one, 1), (half, 4000), (half, 1), (sparse, n - 100), (torch.full((n,), nan).to(dtype), n // 2)):
        bad, values, last = torch.tensor([NEVER]), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        search(emulated, values, last, x, None, bad, torch.ones(1), keep)
        assert bad.item() == int((~x.isfinite()).nonzero()[0]) and -1 <= last.item() < n
        assert x is not one or (values.item(), last.item()) == (inf, 3456)
