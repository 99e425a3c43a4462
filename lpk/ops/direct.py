"""The short way of a call: plain vectors go to their kernel at once.

PyTorch's dispatcher and the operators' checks take longer than a kernel does with a small vector. Nothing is decided
here but whether both can be left out: whatever is not plain, or is watched by somebody, takes the way of the operators,
which say what is wrong with it. Tensors for its results are made here, too, sooner than from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lpk import _core
from lpk.ops import cpu
from lpk.ops.memory import holds_vector, obstacle

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing = torch._C._get_tracing_state
_functorch_level = torch._C._functorch.maybe_current_level
_profiled = torch.autograd._profiler_enabled
_differentiated = torch.is_grad_enabled

TENSORS = (Tensor, nn.Parameter)


def _compiled() -> ModuleType | None:
    """lpk._plain, which was compiled for one version of PyTorch alone."""
    if _core.torch_version != torch.__version__:
        return None
    try:
        from lpk import _plain
    except ImportError:
        return None
    return _plain


_plain = _compiled()


def are_plain(first: Tensor, second: Tensor | None = None, out: Tensor | None = None) -> bool:
    """Whether an operation on these vectors needs no check and is seen by nobody: they are dense vectors in memory, of
    one supported dtype, size and device, without gradients, and `out` overlaps none of the others unless it is it."""
    if torch.compiler.is_compiling() or _is_watched() or _functorch_level() is not None:
        return False
    return forward_ad._current_level < 0 and _look(first, second, out)


def _is_watched_in_python() -> bool:
    """Whether a mode, a profiler or a tracer wants to see what is done to tensors; csrc/plain.cpp does the same."""
    return bool(_dispatch_modes() or _function_modes() or _profiled() or _tracing() is not None)


def _look_in_python(first: Tensor, second: Tensor | None, out: Tensor | None) -> bool:
    """What `are_plain` says of the tensors; csrc/plain.cpp does the same."""
    if type(first) not in TENSORS or (dtype := first.dtype) not in cpu.DTYPES or first.dim() != 1:
        return False
    return (
        _is_plain(first)
        and (second is None or (_is_like(second, first, dtype) and _is_plain(second)))
        and (
            out is None
            or (
                _is_like(out, first, dtype)
                and _is_plain(out)
                and _are_apart(out, first)
                and (second is None or _are_apart(out, second))
            )
        )
    )


_is_watched = _plain.is_watched if _plain is not None else _is_watched_in_python
_look = _plain.are_plain if _plain is not None else _look_in_python


def _is_plain(x: Tensor) -> bool:
    return x.is_contiguous() and holds_vector(x) and not (x.requires_grad and _differentiated())


def _is_like(x: Tensor, first: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(x) in TENSORS
        and x.dtype is dtype
        and x.dim() == 1
        and x.numel() == first.numel()
        and x.get_device() == first.get_device()
    )


def _are_apart(out: Tensor, x: Tensor) -> bool:
    """Or the same."""
    return not 0 < abs(out.data_ptr() - x.data_ptr()) < x.nbytes


def is_coefficient(alpha: object, x: Tensor) -> bool:
    """Whether this is a coefficient for a vector, without a further look at it."""
    if type(alpha) is float:
        return 0.0 <= alpha <= 1.0
    return type(alpha) is Tensor and x.is_cuda and _is_number(alpha, torch.float32, x)


def coefficients(alphas: object, x: Tensor) -> Tensor | Sequence[float] | None:
    """Coefficients for a vector as its backend takes them: numbers, or a tensor on its GPU; None where they need a
    further look."""
    if type(alphas) is Tensor and _is_row(alphas, torch.float32):
        if alphas.is_cuda:
            return alphas if _is_beside(alphas, x) else None
        alphas = alphas.tolist() if obstacle(alphas) is None else None
    return alphas if _are_coefficients(alphas) else None  # type: ignore[return-value]


def _are_coefficients_in_python(alphas: object) -> bool:
    """Whether these are numbers from 0 to 1 in a list or tuple; csrc/plain.cpp does the same."""
    if type(alphas) not in (list, tuple):
        return False
    return all(type(alpha) is float and 0.0 <= alpha <= 1.0 for alpha in alphas)  # type: ignore[attr-defined]


_are_coefficients = _plain.are_coefficients if _plain is not None else _are_coefficients_in_python


def is_keep(keep: object, x: Tensor) -> bool:
    return type(keep) is int and 0 <= keep <= x.numel()


def is_threshold(threshold: object, x: Tensor) -> bool:
    """Whether this is what interpolate_threshold gave for a vector and one coefficient."""
    if type(threshold) is not tuple or len(threshold) != 2:
        return False
    value, last = threshold
    if not (_is_number(value, torch.float32, x) and _is_number(last, torch.int64, x)):
        return False
    return x.is_cuda or value.item() >= 0.0


def are_thresholds(thresholds: object, x: Tensor, count: int) -> bool:
    """Whether this is what interpolate_threshold gave for a vector and so many coefficients."""
    if type(thresholds) is not tuple or len(thresholds) != 2:
        return False
    for numbers, dtype in zip(thresholds, (torch.float32, torch.int64), strict=True):
        if not (
            type(numbers) is Tensor and _is_row(numbers, dtype) and len(numbers) == count and _is_beside(numbers, x)
        ):
            return False
    return x.is_cuda or all(value >= 0.0 for value in thresholds[0].tolist())


def are_rows(out: object, count: int, a: Tensor, b: Tensor) -> bool:
    """Whether this is plain memory for so many rows like `a`, apart from both vectors."""
    return (
        type(out) is Tensor
        and out.dtype is a.dtype
        and out.shape == (count, a.numel())
        and _is_beside(out, a)
        and _share_nothing(out, a)
        and _share_nothing(out, b)
    )


def _share_nothing(out: Tensor, x: Tensor) -> bool:
    return out.data_ptr() >= x.data_ptr() + x.nbytes or x.data_ptr() >= out.data_ptr() + out.nbytes


def _is_number(value: object, dtype: torch.dtype, x: Tensor) -> bool:
    return type(value) is Tensor and value.dtype is dtype and value.numel() == 1 and _is_beside(value, x)


def _is_row(numbers: Tensor, dtype: torch.dtype) -> bool:
    return numbers.dtype is dtype and numbers.dim() == 1 and numbers.is_contiguous()


def _is_beside_in_python(numbers: Tensor, x: Tensor) -> bool:
    """Whether numbers lie in memory on the device of a plain vector."""
    return _is_plain(numbers) and numbers.get_device() == x.get_device()


_is_beside = _plain.is_beside if _plain is not None else _is_beside_in_python


# What a kernel writes to, for a plain vector of n entries. csrc/plain.cpp does the same.


def _empty_like_in_python(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _empty_mask_in_python(x: Tensor) -> Tensor:
    """bool [n]."""
    return torch.empty_like(x, dtype=torch.bool)


def _empty_rows_in_python(x: Tensor, count: int) -> Tensor:
    """[count, n]."""
    return x.new_empty(count, x.numel())


def _empty_thresholds_in_python(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """float32 [count] and int64 [count]."""
    return x.new_empty(count, dtype=torch.float32), x.new_empty(count, dtype=torch.int64)


def _empty_bytes_in_python(x: Tensor, size: int) -> Tensor:
    """uint8 [size]."""
    return x.new_empty(size, dtype=torch.uint8)


def _changed_in_python(out: Tensor) -> Tensor:
    """A tensor that was there before: what autograd saved of it is not what it is any more."""
    torch.autograd.graph.increment_version(out)
    return out


empty_like: Callable[[Tensor], Tensor] = _plain.empty_like if _plain else _empty_like_in_python
empty_mask: Callable[[Tensor], Tensor] = _plain.empty_mask if _plain else _empty_mask_in_python
empty_rows: Callable[[Tensor, int], Tensor] = _plain.empty_rows if _plain else _empty_rows_in_python
empty_thresholds: Callable[[Tensor, int], tuple[Tensor, Tensor]] = (
    _plain.empty_thresholds if _plain else _empty_thresholds_in_python
)
empty_bytes: Callable[[Tensor, int], Tensor] = _plain.empty_bytes if _plain else _empty_bytes_in_python
changed: Callable[[Tensor], Tensor] = _plain.changed if _plain else _changed_in_python
