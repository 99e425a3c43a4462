"""What is checked of tensors before they reach a kernel: in lpk.ops, in the operators and in their fake kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lpk.ops import cpu, memory
from lpk.ops.cpu import DTYPES

Threshold = tuple[Tensor | float, Tensor | int]


def check_inputs(**inputs: object) -> None:
    """That vectors are dense tensors, that what is read has values, and that no gradient would be lost."""
    for name, value in inputs.items():
        if name in ("a", "b", "x", "out") and not isinstance(value, Tensor) and not (name == "out" and value is None):
            raise TypeError(f"{name} is a {type(value).__name__}; a tensor is needed")
    parts = [(name, x) for name, value in inputs.items() for x in (value if isinstance(value, tuple) else (value,))]
    tensors = [(name, x) for name, x in parts if isinstance(x, Tensor)]
    shapes_alone = all(x.is_meta for _, x in tensors)
    for name, x in tensors:
        check_dense(name, x)
        if x.is_meta and not shapes_alone:
            raise ValueError(f"{name} is on meta, where tensors have no values")
        if name == "out" and not torch.compiler.is_compiling() and x.is_neg():
            raise ValueError("out is a lazy view, which can't be written; pass memory of its own")
        if has_gradient(x):
            raise RuntimeError(f"{name} requires a gradient, and lpk.ops has none: use torch.no_grad() or .detach()")


def check_dense(name: str, x: Tensor) -> None:
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"{name} is {'a nested tensor' if x.is_nested else x.layout}; a dense tensor is needed")


def check_memory(**tensors: Tensor) -> None:
    """That native code may be given their addresses. Not for fake kernels, whose tensors have no memory."""
    for name, x in tensors.items():
        if problem := memory.obstacle(x):
            raise TypeError(f"{name} is {problem}; {memory.WANTED}")


def has_gradient(x: Tensor) -> bool:
    """Whether PyTorch would compute one of what is made of x, backward or forward."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def number(name: str, value: float | Tensor, dtype: torch.dtype) -> Tensor:
    tensor = _tensor(value, dtype)
    if tensor.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; one number is needed")
    return tensor.reshape(())


def numbers(name: str, values: Sequence[float] | Tensor, dtype: torch.dtype, count: int | None = None) -> Tensor:
    tensor = _tensor(values, dtype)
    if tensor.dim() != 1 or count not in (None, len(tensor)):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; a list of {count or 'coefficients'} is needed")
    return tensor


def _tensor(values: Sequence[float] | float | Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers lie on the CPU, tensors stay where they are."""
    return values.to(dtype) if isinstance(values, Tensor) else torch.as_tensor(values, dtype=dtype, device="cpu")


def threshold_pair(threshold: Threshold) -> tuple[Tensor, Tensor]:
    value, last = threshold
    return number("threshold[0]", value, torch.float32), number("threshold[1]", last, torch.int64)


def check_on_cpu(function: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise NotImplementedError(f"{name} is on {tensor.device}; {function} is for CPU tensors")


def check_vectors(**vectors: Tensor) -> None:
    """Dtype, shape, layout and device of vectors that must agree with the first one."""
    (first_name, first), *_ = vectors.items()
    for name, v in vectors.items():
        check_dense(name, v)
        if v.dtype not in DTYPES:
            raise TypeError(f"{name} is {v.dtype}; float32, float16 and bfloat16 are supported")
        if v.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(v.shape)}; a flat vector of one dimension is needed")
        if not v.is_contiguous():
            raise ValueError(f"{name} is not contiguous; pass {name}.contiguous()")
        if v.dtype != first.dtype:
            raise TypeError(f"{name} is {v.dtype} but {first_name} is {first.dtype}; they must be the same")
        if v.shape != first.shape:
            raise ValueError(f"{name} has {v.numel()} elements but {first_name} has {first.numel()}")
        if v.device != first.device:
            raise ValueError(f"{name} is on {v.device} but {first_name} is on {first.device}")


def check_keep(keep: int, n: int) -> None:
    if not isinstance(keep, (int, torch.SymInt)):
        raise TypeError(f"keep is a {type(keep).__name__}; a whole number is needed")
    if not 0 <= keep <= n:
        raise ValueError(f"keep is {keep}; 0 to {n}, the number of weights, is possible")


def check_out(out: Tensor, **inputs: Tensor) -> None:
    """`out` may be an input, but must not overlap one partly."""
    size = out.numel() * out.element_size()
    for name, v in inputs.items():
        distance = abs(out.data_ptr() - v.data_ptr())
        if 0 < distance < size:
            raise ValueError(f"out overlaps {name} without being it; pass {name} itself or memory of its own")


def check_packed(a: Tensor, b: Tensor, support: Tensor, positions: Tensor, n: int) -> None:
    """What can be seen without reading the tensors; the kernel checks that support and positions agree."""
    check_vectors(a=a, b=b)
    for name, tensor, dtype, size in (
        ("support", support, torch.uint8, -(-n // 8)),
        ("positions", positions, torch.int64, -(-n // cpu.CHUNK) + 1),
    ):
        if tensor.dtype != dtype or tensor.shape != (size,) or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; for {n} elements, contiguous {dtype} of "
                f"shape ({size},) is needed"
            )


def check_out_of_packed(out: Tensor, n: int, a: Tensor, **others: Tensor) -> None:
    check_vectors(out=out)
    if out.dtype != a.dtype:
        raise TypeError(f"out is {out.dtype} but a is {a.dtype}; they must be the same")
    if out.numel() != n:
        raise ValueError(f"out has {out.numel()} elements but the packed vectors had {n}")
    check_apart(out, a=a, **others)


def check_rows(out: Tensor, a: Tensor, alphas: Tensor) -> None:
    """That `out` has a row like `a` for each coefficient."""
    if out.dtype != a.dtype:
        raise TypeError(f"out is {out.dtype} but a is {a.dtype}; they must be the same")
    if out.shape != (len(alphas), len(a)):
        raise ValueError(f"out has shape {tuple(out.shape)}; ({len(alphas)}, {len(a)}) is needed")
    if not out.is_contiguous():
        raise ValueError("out is not contiguous; a contiguous matrix is needed")
    if out.device != a.device:
        raise ValueError(f"out is on {out.device} but a is on {a.device}")


def check_apart(out: Tensor, **inputs: Tensor) -> None:
    begin, end = out.data_ptr(), out.data_ptr() + out.nbytes
    for name, tensor in inputs.items():
        if begin < tensor.data_ptr() + tensor.nbytes and tensor.data_ptr() < end:
            raise ValueError(f"out overlaps {name}; pass memory of its own")


def check_alphas(alphas: Tensor) -> None:
    """Coefficients that lie on a GPU are not read here."""
    for value in () if alphas.is_cuda else alphas.reshape(-1).tolist():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"alpha is {value}; a coefficient lies in [0, 1]")


def check_threshold(values: Tensor) -> None:
    """Thresholds that lie on a GPU are not read here."""
    for value in () if values.is_cuda else values.reshape(-1).tolist():
        if not value >= 0.0:
            raise ValueError(f"threshold is {value}; a magnitude of at least 0 is needed")
