"""The whole way of a call on a GPU: lpk.ops, lpk/ops/gpu.py, the extension's binding, and the kernels, emulated.

Vectors lie on the CPU and are taken for vectors on a GPU.
"""

import importlib.util
import shutil
import subprocess
import sysconfig

import pytest
import torch

from lpk import ops
from lpk.ops import gpu, operators
from tests import reference
from tests.ops.test_cuda_emulation import DTYPES, ROOT, cuda_headers
from tests.ops.vectors import vector

ALPHAS = [0.05, 0.5, 0.7]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    pybind11 = pytest.importorskip("pybind11")
    headers, compiler = cuda_headers(), shutil.which("g++")
    if headers is None or compiler is None:
        pytest.skip("needs g++ and the CUDA headers")
    library = tmp_path_factory.mktemp("emulation") / "emulated.so"
    # Symbols are its own: PyTorch brings a CUDA runtime that is none here.
    flags = ["-std=c++20", "-O0", "-fPIC", "-shared", "-Wl,-Bsymbolic", "-ffp-contract=off", "-w"]
    folders = (
        ROOT / "csrc",
        ROOT / "tests/ops/emulation",
        headers,
        pybind11.get_include(),
        sysconfig.get_path("include"),
    )
    source = ROOT / "tests/ops/emulation/module.cpp"
    command = [compiler, *flags, *(f"-I{folder}" for folder in folders), str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def on_the_gpu(emulated, monkeypatch):
    status = torch.tensor([gpu.NEVER])
    monkeypatch.setattr(gpu, "_core", emulated)
    monkeypatch.setattr(gpu, "first_bad", lambda device: status)
    monkeypatch.setattr(gpu, "_status_at", {})
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda number: 0, raising=False)
    for module in (ops, operators):
        monkeypatch.setattr(module, "backend", lambda x: gpu)
    return status


def same(one, other):
    return torch.equal(reference.bits(one), reference.bits(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2000, 5000])  # the longest one is cut by a kernel of its own
def test_every_function(n, dtype, on_the_gpu):
    a, b = vector("normal", n, 0, dtype), vector("normal", n, 1, dtype)
    assert same(ops.interpolate(a, b, 0.3), reference.interpolate(a, b, 0.3))
    for keep in {0, min(1, n), n // 5, n}:
        expected = [reference.interpolate_prune(a, b, alpha, keep) for alpha in ALPHAS]
        values, last = ops.interpolate_threshold(a, b, ALPHAS, keep)
        if keep:
            found = reference.interpolate_threshold(a, b, ALPHAS, keep)
            assert torch.equal(values, found[0]) and torch.equal(last, found[1])
        rows = torch.full((3, n), 7, dtype=dtype)
        for made in (
            ops.interpolate_prune_all(a, b, ALPHAS, keep),
            ops.interpolate_prune_all(a, b, ALPHAS, keep, out=rows),
            ops.interpolate_prune_all(a, b, ALPHAS, keep, thresholds=(values, last)),
            [ops.interpolate_prune(a, b, alpha, keep) for alpha in ALPHAS],
            [
                ops.interpolate_prune(a, b, alpha, keep, threshold=pair)
                for alpha, *pair in zip(ALPHAS, values, last, strict=True)
            ],
        ):
            assert all(map(same, made, expected)), keep
        assert torch.equal(ops.magnitude_mask(a, keep), reference.magnitude_mask(a, keep))
        assert same(ops.magnitude_prune(a.clone(), keep, out=a.clone()), reference.magnitude_prune(a, keep))
    assert on_the_gpu.item() == gpu.NEVER


def test_through_the_operators():
    """What the dispatcher brings: coefficients and thresholds as tensors."""
    n, keep = 5000, 1000
    a, b = vector("ties", n, 0, torch.float32), vector("ties", n, 1, torch.float32)
    alphas = torch.tensor(ALPHAS)
    values, last = torch.ops.lpk.interpolate_threshold(a, b, alphas, keep)
    rows = torch.ops.lpk.interpolate_prune_all(a, b, alphas, values, last)
    for row, alpha, value, place in zip(rows, alphas, values, last, strict=True):
        expected = reference.interpolate_prune(a, b, alpha.item(), keep)
        assert same(row, expected) and same(torch.ops.lpk.interpolate_prune(a, b, alpha, value, place), expected)
        assert same(torch.ops.lpk.interpolate(a, b, alpha), reference.interpolate(a, b, alpha.item()))
    assert same(torch.ops.lpk.magnitude_prune(a, keep), reference.magnitude_prune(a, keep))
    assert torch.equal(torch.ops.lpk.magnitude_mask(a, keep), reference.magnitude_mask(a, keep))


def test_more_coefficients_than_one_launch_takes():
    a, b = vector("normal", 1000, 0, torch.float32), vector("normal", 1000, 1, torch.float32)
    alphas = torch.linspace(0, 1, 19).tolist()
    for row, alpha in zip(ops.interpolate_prune_all(a, b, alphas, 200), alphas, strict=True):
        assert same(row, reference.interpolate_prune(a, b, alpha, 200))


def test_what_is_not_finite_is_noted(on_the_gpu):
    a, b = torch.ones(2, 5000).unbind()
    b[1234] = torch.nan
    for call in (
        lambda: ops.interpolate(a, b, 0.3),
        lambda: ops.interpolate_threshold(a, b, ALPHAS, 100),
        lambda: ops.interpolate_prune(a, b, 0.3, 100),
        lambda: ops.interpolate_prune_all(a, b, ALPHAS, 100),
        lambda: ops.magnitude_mask(b, 100),
        lambda: ops.magnitude_prune(b, 100),
    ):
        on_the_gpu.fill_(gpu.NEVER)
        call()
        assert on_the_gpu.item() == 1234
