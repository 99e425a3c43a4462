"""Memory for activations."""

import mmap

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
