"""The memory of tensors, as native code reads and writes it: by its address."""

from __future__ import annotations

from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

# What PyTorch's dispatcher knows of a dense tensor with memory of its own, on a CPU or a GPU. What stands for other
# values than its memory holds, or has none, has a further key or another one.
_KEYS = [
    getattr(torch._C.DispatchKey, name)
    for name in ("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
]
_PLAIN = reduce(or_, (torch._C.DispatchKeySet(key).raw_repr() for key in _KEYS))
_DENSE = torch._C.DispatchKeySet(_KEYS[0]).raw_repr() & torch._C.DispatchKeySet(_KEYS[1]).raw_repr()

_NEGATIVE = torch._C.DispatchKeySet(torch._C.DispatchKey.Negative).raw_repr()

_plain_keys: set[int] = set()  # of tensors that were seen without an obstacle

WANTED = "a dense tensor on the CPU or a GPU is needed, which holds its values"


def address(name: str, x: Tensor | None) -> int:
    """Of a tensor's first element, for native code; 0 for None.

    It is good for a call. Whoever keeps it for longer keeps the tensor as well, and lets nobody else have that: PyTorch
    moves memory when a tensor is shared with another process, resized, or given other data.

    Raises TypeError for a tensor without such memory, naming it.
    """
    if x is None:
        return 0
    if problem := obstacle(x):
        raise TypeError(f"{name} is {problem}; {WANTED}")
    return x.data_ptr()


def holds_vector(x: Tensor) -> bool:
    """Whether a contiguous tensor has no obstacle: the same answer, sooner for tensors like those seen before."""
    if torch._C._dispatch_keys(x).raw_repr() not in _plain_keys:
        return obstacle(x) is None
    return bool(x.storage_offset() * x.itemsize + x.nbytes <= x.untyped_storage().nbytes())


def at(x: Tensor | None) -> int:
    """The address of a tensor that has passed `obstacle`."""
    return 0 if x is None else x.data_ptr()


def resolved(name: str, x: Tensor) -> Tensor:
    """A tensor with a memory of its values: itself, or a copy of a view that PyTorch negates when it is read.

    Raises TypeError for one whose values no memory holds.
    """
    if problem := obstacle(x, negated=True):
        raise TypeError(f"{name} is {problem}; {WANTED}")
    return x.resolve_neg()


def obstacle(x: Tensor, *, negated: bool = False) -> str | None:
    """What a tensor is, in words, whose memory does not hold its values; None for all others.

    negated: whether it may hold the negative of them (z.conj().imag).
    """
    keys = torch._C._dispatch_keys(x).raw_repr()
    if keys & ~(_PLAIN | _NEGATIVE if negated else _PLAIN) or not keys & _DENSE:
        return _kind(x)
    if not keys & _NEGATIVE:
        _plain_keys.add(keys)
    last = x.numel() - 1 if x.is_contiguous() else sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    held = x.untyped_storage().nbytes()
    if x.numel() > 0 and (x.storage_offset() + last + 1) * x.element_size() > held:
        return f"of the shape {list(x.shape)}, but its storage was resized to {held} bytes"
    return None


def _kind(x: Tensor) -> str:
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return "inside torch.func (vmap, grad, jvp)"
    if type(x) not in (Tensor, nn.Parameter):
        return f"a {type(x).__name__}"
    if x.is_nested or x.layout != torch.strided:
        return f"{'a nested tensor' if x.is_nested else f'stored as {x.layout}'}"
    if x.is_quantized or x.device.type not in ("cpu", "cuda"):
        return f"{x.dtype} on {x.device}"
    return "a lazy view, or the like"
