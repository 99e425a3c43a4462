"""Memory for activations, in pages of 2 MiB where the system has them: fewer of them have to be looked up."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

PAGE = 2 << 20  # bytes
LEAST = PAGE // 2  # what is smaller takes ordinary pages


def zeros(size: int) -> Tensor:
    """float32 [size], at a multiple of 64 bytes."""
    bytes_ = 4 * size
    if bytes_ < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.float32, device="cpu")
    # Zeros, of which only what is used is there. Private: by default a process that is forked would write into it, too.
    memory = mmap.mmap(-1, bytes_ + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.float32)
    first = -whole.data_ptr() % PAGE // 4
    return whole[first : first + size]
