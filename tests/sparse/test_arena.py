"""Memory for activations."""

import mmap
import os

import pytest
import torch

from lpk.sparse import arena


@pytest.mark.parametrize("size", [0, 1, 1000, arena.LEAST // 4 - 1, arena.LEAST // 4, arena.PAGE, 3 * arena.PAGE + 5])
@pytest.mark.parametrize("pages", ["huge", "refused", "unknown"])
def test_zeros(size, pages, monkeypatch):
    """Of every size, where huge pages can be had, where the kernel refuses them, and on other systems."""
    if pages == "refused":
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    elif pages == "unknown":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    zeros = arena.zeros(size)
    assert zeros.shape == (size,) and zeros.dtype == torch.float32 and not zeros.any()
    assert size == 0 or zeros.data_ptr() % 64 == 0
    zeros += 1
    assert zeros.sum() == size


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("size", [1000, arena.PAGE])
def test_a_forked_process_has_its_own(size):
    zeros = arena.zeros(size)
    child = os.fork()
    if child == 0:
        zeros[-1] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and not zeros.any()
