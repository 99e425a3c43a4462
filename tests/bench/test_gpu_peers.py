"""Peers on a GPU that are no part of PyTorch: how CUB's is built, and, on a GPU, that they answer lpk's questions."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import cub_peer, flashinfer_peer
from bench.cases import Case
from lpk import ops
from tests.ops.vectors import vector

NVCC = """#!/bin/sh
echo "$@" >> "$0.calls"
{then}
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""
# What bench/cub_topk.cu promises, for memory of the CPU: entries in any order, here by index.
LIBRARY = """
#include <math.h>
#include <stddef.h>
#include <stdint.h>
typedef uint32_t size;
static int find(void* storage, size_t* bytes, const float* x, float* values, int64_t* indices, size n, size keep) {
  if (!storage) return *bytes = n, 0;
  if (keep > n || *bytes != n) return 7;
  size found = 0;
  for (size i = 0; i < n; ++i) {
    size before = 0;
    for (size j = 0; j < n; ++j)
      before += fabsf(x[j]) > fabsf(x[i]) || (fabsf(x[j]) == fabsf(x[i]) && j > i);  // the larger index
    if (before >= keep) continue;
    if (values) values[found] = fabsf(x[i]); else indices[found] = i;
    ++found;
  }
  return 0;
}
int largest_magnitudes(void* storage, size_t* bytes, const float* x, float* out, size n, size keep, void* stream) {
  return find(storage, bytes, x, out, NULL, n, keep);
}
int largest_indices(void* storage, size_t* bytes, const float* x, int64_t* out, size n, size keep, void* stream) {
  return find(storage, bytes, x, NULL, out, n, keep);
}
"""
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")


@pytest.fixture(autouse=True)
def forgotten():
    """What earlier tests found."""
    cub_peer.library.cache_clear()
    yield
    cub_peer.library.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A stand-in for nvcc, in front of all others. Returns what makes another one, and what tells its arguments."""
    library = tmp_path / "sample.so"
    source = tmp_path / "sample.c"
    source.write_text(LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cub_peer, "BUILT", tmp_path / "built")
    nvcc = tmp_path / "nvcc"

    def install(then=""):
        nvcc.write_text(NVCC.format(then=then, library=library))
        nvcc.chmod(0o755)

    install()
    calls = tmp_path / "nvcc.calls"
    return install, lambda: calls.read_text().splitlines() if calls.is_file() else []


def test_the_library_is_built_once_for_each_source(compiler, tmp_path, monkeypatch):
    _, calls = compiler
    for _ in range(2):
        cub_peer.library.cache_clear()  # as in a new process
        assert cub_peer.library().largest_indices
    assert len(calls()) == 1 and "sm_80" in calls()[0] and "sm_90" in calls()[0]
    changed = tmp_path / "cub_topk.cu"
    changed.write_text(cub_peer.SOURCE.read_text() + "\n")
    monkeypatch.setattr(cub_peer, "SOURCE", changed)
    cub_peer.library.cache_clear()
    assert cub_peer.library().largest_indices and len(calls()) == 2
    assert len(list((tmp_path / "built").iterdir())) == 2


def test_headers_are_taken_from_the_folder_that_is_named_where_it_has_them(compiler, tmp_path, monkeypatch):
    _, calls = compiler
    monkeypatch.setenv("CCCL_INCLUDE", str(tmp_path / "cccl"))
    cub_peer.library()
    assert f"-I{tmp_path / 'cccl'}" not in calls()[0]
    header = tmp_path / "cccl" / "cub" / "device" / "device_topk.cuh"
    header.parent.mkdir(parents=True)
    header.touch()
    for built in (tmp_path / "built").iterdir():
        built.unlink()
    cub_peer.library.cache_clear()
    cub_peer.library()
    assert calls()[1].endswith(f"-I{tmp_path / 'cccl'}")


def test_why_it_can_not_be_built_is_said_and_tried_once(compiler, monkeypatch):
    install, calls = compiler
    install(then="echo 'a note' >&2; echo 'x.cu: error: no such header' >&2; exit 2")
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=r"not built: x\.cu: error: no such header"):
            cub_peer.mask(torch.ones(8), 2)
    assert len(calls()) == 1
    cub_peer.library.cache_clear()
    monkeypatch.setattr(cub_peer.shutil, "which", lambda name, path: None)
    with pytest.raises(NotImplementedError, match="there is no nvcc"):
        cub_peer.mask(torch.ones(8), 2)


def test_they_are_contestants_on_a_gpu_alone(monkeypatch):
    names = ("cub.topk", "flashinfer.top_k")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "flashinfer")
    assert tuple(Case(device="cuda").contestants(names)) == names
    assert not tuple(Case(device="cpu").contestants(names))
    assert not tuple(Case(device="cuda", dtype=torch.float16).contestants(names))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tuple(Case(device="cuda").contestants(names)) == ("cub.topk",)


def test_flashinfer_is_not_asked_for_more_than_it_takes():
    with pytest.raises(NotImplementedError, match="2,097,152"):
        flashinfer_peer.largest(torch.empty(2**21 + 1, device="meta"), 5)


def check_answers(peer, device, n):
    """Beside lpk's, with a coefficient for which PyTorch's interpolation has lpk's bits. Of what ties, as many."""
    for kind in ("normal", "ties", "mostly-zero"):
        a, b = (vector(kind, n, seed, torch.float32).to(device) for seed in (0, 1))
        for keep in (1, n // 5, n):
            (expected,), _ = ops.interpolate_threshold(a, b, [1.0], keep)
            assert torch.equal(peer.threshold(a, b, 1.0, keep), expected), (kind, keep)
            survives, tied = peer.mask(a, keep), a.abs() == expected
            assert int(survives.sum()) == keep, (kind, keep)
            assert torch.equal(survives | tied, ops.magnitude_mask(a, keep) | tied), (kind, keep)
            pruned = peer.prune(a, b, 1.0, keep)
            assert torch.equal(pruned[~tied], a.where(survives, 0)[~tied]), (kind, keep)
            if peer is flashinfer_peer:  # the smaller index
                assert torch.equal(survives, ops.magnitude_mask(a, keep)), (kind, keep)


@pytest.mark.gpu
@ON_A_GPU
def test_cub_answers_as_lpk_does():
    if isinstance(problem := cub_peer.library(), str):
        pytest.skip(problem)
    check_answers(cub_peer, "cuda", 300_007)


@pytest.mark.gpu
@ON_A_GPU
def test_flashinfer_answers_as_lpk_does():
    pytest.importorskip("flashinfer")
    try:
        flashinfer_peer.largest(torch.ones(2, device="cuda"), 1)
    except NotImplementedError as error:
        pytest.skip(str(error))
    check_answers(flashinfer_peer, "cuda", 300_007)


def test_what_is_made_of_cubs_answers(compiler, monkeypatch):
    """The stand-in's library answers on the CPU."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    check_answers(cub_peer, "cpu", 101)
    with pytest.raises(RuntimeError, match="CUDA error 7"):
        cub_peer.mask(torch.ones(8), 9)


def test_what_is_made_of_flashinfers_answers(monkeypatch):
    def top_k(rows, keep, *, tie_break):
        assert tie_break == "the smaller index"
        return [found[:, :keep] for found in rows.sort(dim=1, descending=True, stable=True)]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    topk = SimpleNamespace(can_use_cub_topk=None)
    modes = SimpleNamespace(SMALL="the smaller index")
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(topk=topk, TopKTieBreak=modes, top_k=top_k))
    check_answers(flashinfer_peer, "cpu", 101)
    del topk.can_use_cub_topk
    sys.modules["flashinfer"].__version__ = "0.5"
    with pytest.raises(NotImplementedError, match=r"0\.5"):
        flashinfer_peer.mask(torch.ones(8), 2)
