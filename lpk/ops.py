"""The kernels as PyTorch operators, and the one place that picks the backend that runs them.

For flat vectors a and b and a coefficient alpha, rounded to float32, with beta = 1 - alpha in float32:

    x_j = fma(alpha, a_j, beta * b_j)      in float32, then rounded to the vectors' dtype           (paper, equation 1)

Pruning keeps the `keep` entries of largest |x_j| as stored; among equal magnitudes the lower index survives, and what
does not survive becomes +0. Every backend, instruction set and thread count returns the same bits.

Vectors are one-dimensional contiguous tensors of dtype float32, float16 or bfloat16, all of one dtype and device.
Errors, for every function: TypeError for another dtype; ValueError for shapes that do not match, a vector that is not
contiguous, `keep` outside 0..n, a coefficient outside [0, 1], an `out` that overlaps an input without being it, and
weights that are NaN or infinite; RuntimeError where a gradient would be lost. On a GPU no function waits for the
device: coefficients and thresholds may be device tensors, and `raise_if_not_finite` tells afterwards of NaN and
infinity.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from lpk import _core, cpu, gpu
from lpk.cpu import DTYPES
from lpk.gpu import raise_if_not_finite as raise_if_not_finite

Threshold = tuple[Tensor | float, Tensor | int]


class Packed(NamedTuple):
    """Two vectors of n elements without those that are +0 in both; `pack` makes it.

    Attributes:
        a, b: the m elements left of each vector, in order, [m].
        support: uint8 [ceil(n / 8)], whose bit i % 8 of byte i // 8 says whether element i is one of them.
        positions: int64 [ceil(n / 32768) + 1], how many of them stand before each 32768 elements; the last entry is m.
        n: the size of the vectors.
    """

    a: Tensor
    b: Tensor
    support: Tensor
    positions: Tensor
    n: int


def interpolate(a: Tensor, b: Tensor, alpha: float | Tensor, *, out: Tensor | None = None) -> Tensor:
    """x = alpha * a + (1 - alpha) * b (equation 1).

    Args:
        a, b: vectors [n]; `a` is the network that alpha weighs.
        alpha: coefficient in [0, 1], or a tensor of one element.
        out: where to write; may be `a` or `b` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `a`.
    """
    _check_inputs(a=a, b=b, alpha=alpha, out=out)
    alpha = _number("alpha", alpha, torch.float32)
    if out is None:
        return torch.ops.lpk.interpolate(a, b, alpha)
    torch.ops.lpk.interpolate_out(a, b, alpha, out)
    return out


def interpolate_threshold(a: Tensor, b: Tensor, alphas: Sequence[float] | Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """For each coefficient, where `interpolate_prune` cuts: one sweep over a and b for all of them.

    Args:
        a, b: vectors [n].
        alphas: K coefficients in [0, 1].
        keep: how many entries survive, 0..n.

    Returns:
        The keep-th largest |x| for each coefficient, float32 [K], and the index of the last entry of that magnitude
        that survives, int64 [K]. For keep = 0: +inf and -1.
    """
    _check_inputs(a=a, b=b, alphas=alphas)
    _check_keep(keep, a.numel())
    return torch.ops.lpk.interpolate_threshold(a, b, _numbers("alphas", alphas, torch.float32), keep)


def interpolate_prune(
    a: Tensor,
    b: Tensor,
    alpha: float | Tensor,
    keep: int,
    *,
    threshold: Threshold | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """MagnitudePruning(alpha * a + (1 - alpha) * b): Algorithm 2, line 5.

    Args:
        a, b: vectors [n].
        alpha: coefficient in [0, 1].
        keep: how many entries survive, 0..n.
        threshold: what `interpolate_threshold` returned for this coefficient, a pair (t, j): entry i survives if
            |x_i| > t, or |x_i| = t and i <= j. Without it, it is found first.
        out: where to write; may be `a` or `b` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `a`.
    """
    _check_inputs(a=a, b=b, alpha=alpha, out=out)
    _check_keep(keep, a.numel())
    alpha = _number("alpha", alpha, torch.float32)
    if threshold is None:
        threshold = torch.ops.lpk.interpolate_threshold(a, b, alpha.reshape(1), keep)
    value, last = _threshold(threshold)
    if out is None:
        return torch.ops.lpk.interpolate_prune(a, b, alpha, value, last)
    torch.ops.lpk.interpolate_prune_out(a, b, alpha, value, last, out)
    return out


def interpolate_prune_all(
    a: Tensor,
    b: Tensor,
    alphas: Sequence[float] | Tensor,
    keep: int,
    *,
    thresholds: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`interpolate_prune` for each coefficient, in one pass over a and b, which costs less than one for each.

    Args:
        a, b: vectors [n].
        alphas: K coefficients in [0, 1].
        keep: how many entries survive, 0..n.
        thresholds: what `interpolate_threshold` returned for these coefficients. Without them, they are found first.
        out: where to write, contiguous [K, n]; its memory must be apart from that of `a` and `b`.

    Returns:
        `out`, or a new matrix [K, n] of the dtype of `a`: row k is pruned for coefficient k.
    """
    _check_inputs(a=a, b=b, alphas=alphas, out=out)
    _check_keep(keep, a.numel())
    alphas = _numbers("alphas", alphas, torch.float32)
    if thresholds is None:
        thresholds = torch.ops.lpk.interpolate_threshold(a, b, alphas, keep)
    values = _numbers("thresholds[0]", thresholds[0], torch.float32, alphas.numel())
    last = _numbers("thresholds[1]", thresholds[1], torch.int64, alphas.numel())
    if out is None:
        return torch.ops.lpk.interpolate_prune_all(a, b, alphas, values, last)
    torch.ops.lpk.interpolate_prune_all_out(a, b, alphas, values, last, out)
    return out


def pack(a: Tensor, b: Tensor) -> Packed:
    """Sparse vectors made short: what is +0 in both is left out, for all the coefficients that are tried on them.

    An element is kept where a or b has a bit set: -0 is kept, since a -0 that survives pruning stays -0.

    Args:
        a, b: vectors [n] on the CPU.

    Returns:
        The packed vectors, for `interpolate_threshold(packed.a, packed.b, ...)` and `interpolate_prune_packed`.

    Raises:
        NotImplementedError: for tensors that are not on the CPU. Others as for every function.
    """
    _check_inputs(a=a, b=b)
    _check_on_cpu("pack", a=a, b=b)
    packed_a, packed_b, support, positions = torch.ops.lpk.pack(a, b)
    return Packed(packed_a, packed_b, support, positions, a.numel())


def interpolate_prune_packed(
    packed: Packed,
    alpha: float | Tensor,
    keep: int,
    *,
    threshold: Threshold | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The bits of `interpolate_prune(a, b, alpha, keep)`, from what `pack(a, b)` returned.

    Zeros that survive are not told apart in packed vectors: where there are any (`keep` above m, or a threshold of 0),
    the whole interpolation is written and pruned by `magnitude_prune`, which takes longer and returns the same bits.

    Args:
        packed: two vectors [n], packed.
        alpha: coefficient in [0, 1].
        keep: how many entries survive, 0..n.
        threshold: what `interpolate_threshold(packed.a, packed.b, ...)` returned for this coefficient and this `keep`.
            Without it, it is found first.
        out: where to write, [n]; its memory must be apart from that of `packed`.

    Returns:
        `out`, or a new vector [n] of the dtype of `packed.a`.

    Raises:
        NotImplementedError: for tensors that are not on the CPU.
        ValueError: also where the tensors of `packed` do not belong together.
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"packed is a {type(packed).__name__}; what pack returned is needed")
    *tensors, n = packed
    _check_inputs(a=packed.a, b=packed.b, alpha=alpha, out=out)
    _check_on_cpu("interpolate_prune_packed", packed=packed.a, out=packed.a if out is None else out)
    _check_keep(keep, n)
    alpha = _number("alpha", alpha, torch.float32)
    if threshold is None:
        possible = min(keep, packed.a.numel())
        threshold = torch.ops.lpk.interpolate_threshold(packed.a, packed.b, alpha.reshape(1), possible)
    value, last = _threshold(threshold)
    if out is None:
        return torch.ops.lpk.interpolate_prune_packed(*tensors, n, alpha, keep, value, last)
    torch.ops.lpk.interpolate_prune_packed_out(*tensors, n, alpha, keep, value, last, out)
    return out


def magnitude_prune(x: Tensor, keep: int, *, out: Tensor | None = None) -> Tensor:
    """x with all but its `keep` largest magnitudes set to +0.

    Args:
        x: vector [n].
        keep: how many entries survive, 0..n.
        out: where to write; may be `x` itself.

    Returns:
        `out`, or a new vector [n] of the dtype of `x`.
    """
    _check_inputs(x=x, out=out)
    _check_keep(keep, x.numel())
    if out is None:
        return torch.ops.lpk.magnitude_prune(x, keep)
    torch.ops.lpk.magnitude_prune_out(x, keep, out)
    return out


def magnitude_mask(x: Tensor, keep: int) -> Tensor:
    """Which entries of x are among its `keep` largest magnitudes.

    Args:
        x: vector [n]; may require a gradient, a mask has none.
        keep: how many entries are True, 0..n.

    Returns:
        Mask, bool [n].
    """
    with torch.no_grad():
        _check_inputs(x=x)
        _check_keep(keep, x.numel())
        return torch.ops.lpk.magnitude_mask(x.detach(), keep)


def instruction_set() -> str:
    """The instruction set that the CPU kernels use here: "portable", "avx2" or "avx512"."""
    return _core.instruction_set()


def backends() -> dict[str, str]:
    """Each backend, and whether it runs here or why it does not."""
    no_gpu = None if torch.cuda.is_available() else "no GPU is usable here"
    described = {"cpu": f"runs here: {_core.instruction_set()} (usable: {', '.join(_core.instruction_sets())})"}
    if _core.cuda_compiled:
        described["cuda"] = f"compiled for sm_{_core.cuda_architectures.replace(' ', ', sm_')}; {no_gpu or 'runs here'}"
    else:
        described["cuda"] = "not compiled: nvcc was not found, or LPK_CUDA=0 was set, when lpk was built"
    if importlib.util.find_spec("triton") is None:
        described["triton"] = "not installed"
    else:
        described["triton"] = no_gpu or ("not needed: cuda runs" if _core.cuda_compiled else "runs here")
    return described


# --- checks, shared by the implementations and the fake kernels -------------------------------------------------------


def _check_inputs(**inputs: object) -> None:
    """That vectors are tensors, and that no gradient would be lost."""
    for name, value in inputs.items():
        if name in ("a", "b", "x", "out") and not isinstance(value, Tensor) and not (name == "out" and value is None):
            raise TypeError(f"{name} is a {type(value).__name__}; a tensor is needed")
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{name} requires a gradient, and lpk.ops has none: use torch.no_grad() or .detach()")


def _number(name: str, value: float | Tensor, dtype: torch.dtype) -> Tensor:
    tensor = torch.as_tensor(value, dtype=dtype)
    if tensor.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; one number is needed")
    return tensor.reshape(())


def _numbers(name: str, values: Sequence[float] | Tensor, dtype: torch.dtype, count: int | None = None) -> Tensor:
    tensor = torch.as_tensor(values, dtype=dtype)
    if tensor.dim() != 1 or count not in (None, len(tensor)):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; a list of {count or 'coefficients'} is needed")
    return tensor


def _threshold(threshold: Threshold) -> tuple[Tensor, Tensor]:
    value, last = threshold
    return _number("threshold[0]", value, torch.float32), _number("threshold[1]", last, torch.int64)


def _check_on_cpu(function: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise NotImplementedError(f"{name} is on {tensor.device}; {function} is for CPU tensors")


def _check_vectors(**vectors: Tensor) -> None:
    """Dtype, shape, layout and device of vectors that must agree with the first one."""
    (first_name, first), *_ = vectors.items()
    for name, v in vectors.items():
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


def _check_keep(keep: int, n: int) -> None:
    if not isinstance(keep, (int, torch.SymInt)):
        raise TypeError(f"keep is a {type(keep).__name__}; a whole number is needed")
    if not 0 <= keep <= n:
        raise ValueError(f"keep is {keep}; 0 to {n}, the number of weights, is possible")


def _check_out(out: Tensor, **inputs: Tensor) -> None:
    """`out` may be an input, but must not overlap one partly."""
    size = out.numel() * out.element_size()
    for name, v in inputs.items():
        distance = abs(out.data_ptr() - v.data_ptr())
        if 0 < distance < size:
            raise ValueError(f"out overlaps {name} without being it; pass {name} itself or memory of its own")


def _check_packed(a: Tensor, b: Tensor, support: Tensor, positions: Tensor, n: int) -> None:
    """What can be seen without reading the tensors; the kernel checks that support and positions agree."""
    _check_vectors(a=a, b=b)
    for name, tensor, dtype, size in (
        ("support", support, torch.uint8, -(-n // 8)),
        ("positions", positions, torch.int64, -(-n // cpu.CHUNK) + 1),
    ):
        if tensor.dtype != dtype or tensor.shape != (size,) or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; for {n} elements, contiguous {dtype} of "
                f"shape ({size},) is needed"
            )


def _check_out_of_packed(out: Tensor, n: int, a: Tensor, **others: Tensor) -> None:
    _check_vectors(out=out)
    if out.dtype != a.dtype:
        raise TypeError(f"out is {out.dtype} but a is {a.dtype}; they must be the same")
    if out.numel() != n:
        raise ValueError(f"out has {out.numel()} elements but the packed vectors had {n}")
    _check_apart(out, a=a, **others)


def _check_rows(out: Tensor, a: Tensor, alphas: Tensor) -> None:
    """That `out` has a row like `a` for each coefficient."""
    if out.dtype != a.dtype:
        raise TypeError(f"out is {out.dtype} but a is {a.dtype}; they must be the same")
    if out.shape != (len(alphas), len(a)):
        raise ValueError(f"out has shape {tuple(out.shape)}; ({len(alphas)}, {len(a)}) is needed")
    if not out.is_contiguous():
        raise ValueError("out is not contiguous; a contiguous matrix is needed")
    if out.device != a.device:
        raise ValueError(f"out is on {out.device} but a is on {a.device}")


def _check_apart(out: Tensor, **inputs: Tensor) -> None:
    begin, end = out.data_ptr(), out.data_ptr() + out.nbytes
    for name, tensor in inputs.items():
        if begin < tensor.data_ptr() + tensor.nbytes and tensor.data_ptr() < end:
            raise ValueError(f"out overlaps {name}; pass memory of its own")


def _check_alphas(alphas: Tensor) -> None:
    """Coefficients that lie on a GPU are not read here."""
    for value in () if alphas.is_cuda else alphas.reshape(-1).tolist():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"alpha is {value}; a coefficient lies in [0, 1]")


def _check_threshold(values: Tensor) -> None:
    """Thresholds that lie on a GPU are not read here."""
    for value in () if values.is_cuda else values.reshape(-1).tolist():
        if not value >= 0.0:
            raise ValueError(f"threshold is {value}; a magnitude of at least 0 is needed")


def _backend(x: Tensor) -> ModuleType:
    """What runs the operations on this vector's device."""
    if x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"a vector on {x.device} is not supported; CPU and CUDA tensors are")
    return gpu if x.is_cuda else cpu


# --- the operators: schema, implementation and fake kernel ------------------------------------------------------------


@custom_op("lpk::interpolate_out", mutates_args=("out",))
def _interpolate_out(a: Tensor, b: Tensor, alpha: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b, out=out)
    _check_out(out, a=a, b=b)
    _check_alphas(alpha)
    _backend(a).interpolate(out, a, b, alpha)


@_interpolate_out.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b, out=out)


@custom_op("lpk::interpolate", mutates_args=())
def _interpolate(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    _check_vectors(a=a, b=b)
    _check_alphas(alpha)
    out = torch.empty_like(a)
    _backend(a).interpolate(out, a, b, alpha)
    return out


@_interpolate.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    _check_vectors(a=a, b=b)
    return torch.empty_like(a)


@custom_op("lpk::interpolate_threshold", mutates_args=())
def _interpolate_threshold(a: Tensor, b: Tensor, alphas: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    _check_vectors(a=a, b=b)
    _check_keep(keep, a.numel())
    _check_alphas(alphas)
    return _backend(a).interpolate_threshold(a, b, alphas, keep)


@_interpolate_threshold.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    _check_vectors(a=a, b=b)
    _check_keep(keep, a.numel())
    return a.new_empty(alphas.shape, dtype=torch.float32), a.new_empty(alphas.shape, dtype=torch.int64)


@custom_op("lpk::interpolate_prune_out", mutates_args=("out",))
def _interpolate_prune_out(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b, out=out)
    _check_out(out, a=a, b=b)
    _check_alphas(alpha)
    _check_threshold(value)
    _backend(a).interpolate_prune(out, a, b, alpha, value, last)


@_interpolate_prune_out.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b, out=out)


@custom_op("lpk::interpolate_prune", mutates_args=())
def _interpolate_prune(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor) -> Tensor:
    out = torch.empty_like(a)
    _interpolate_prune_out(a, b, alpha, value, last, out)
    return out


@_interpolate_prune.register_fake
def _(a: Tensor, b: Tensor, alpha: Tensor, value: Tensor, last: Tensor) -> Tensor:
    _check_vectors(a=a, b=b)
    return torch.empty_like(a)


@custom_op("lpk::interpolate_prune_all_out", mutates_args=("out",))
def _interpolate_prune_all_out(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b)
    _check_rows(out, a, alphas)
    _check_apart(out, a=a, b=b)
    _check_alphas(alphas)
    _check_threshold(values)
    _backend(a).interpolate_prune_all(out, a, b, alphas, values, last)


@_interpolate_prune_all_out.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor, out: Tensor) -> None:
    _check_vectors(a=a, b=b)
    _check_rows(out, a, alphas)


@custom_op("lpk::interpolate_prune_all", mutates_args=())
def _interpolate_prune_all(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor) -> Tensor:
    _check_vectors(a=a, b=b)
    out = a.new_empty(len(alphas), len(a))
    _interpolate_prune_all_out(a, b, alphas, values, last, out)
    return out


@_interpolate_prune_all.register_fake
def _(a: Tensor, b: Tensor, alphas: Tensor, values: Tensor, last: Tensor) -> Tensor:
    _check_vectors(a=a, b=b)
    return a.new_empty(len(alphas), len(a))


_ONE = torch.ones(())


def _magnitude_threshold(x: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Without b, the interpolation is x itself."""
    value, last = _backend(x).interpolate_threshold(x, None, _ONE.reshape(1), keep)
    return value.reshape(()), last.reshape(())


@custom_op("lpk::magnitude_prune_out", mutates_args=("out",))
def _magnitude_prune_out(x: Tensor, keep: int, out: Tensor) -> None:
    _check_vectors(x=x, out=out)
    _check_out(out, x=x)
    _check_keep(keep, x.numel())
    _backend(x).interpolate_prune(out, x, None, _ONE, *_magnitude_threshold(x, keep))


@_magnitude_prune_out.register_fake
def _(x: Tensor, keep: int, out: Tensor) -> None:
    _check_vectors(x=x, out=out)
    _check_keep(keep, x.numel())


@custom_op("lpk::magnitude_prune", mutates_args=())
def _magnitude_prune(x: Tensor, keep: int) -> Tensor:
    out = torch.empty_like(x)
    _magnitude_prune_out(x, keep, out)
    return out


@_magnitude_prune.register_fake
def _(x: Tensor, keep: int) -> Tensor:
    _check_vectors(x=x)
    _check_keep(keep, x.numel())
    return torch.empty_like(x)


@custom_op("lpk::magnitude_mask", mutates_args=())
def _magnitude_mask(x: Tensor, keep: int) -> Tensor:
    _check_vectors(x=x)
    _check_keep(keep, x.numel())
    mask = torch.empty_like(x, dtype=torch.bool)
    _backend(x).magnitude_mask(mask, x, *_magnitude_threshold(x, keep))
    return mask


@_magnitude_mask.register_fake
def _(x: Tensor, keep: int) -> Tensor:
    _check_vectors(x=x)
    _check_keep(keep, x.numel())
    return torch.empty_like(x, dtype=torch.bool)


@custom_op("lpk::pack", mutates_args=(), device_types="cpu")
def _pack(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_vectors(a=a, b=b)
    support, positions = _empty_support(a)
    m = cpu.find_support(support, positions, a, b)
    packed = a.new_empty(m), b.new_empty(m)
    for out, x in zip(packed, (a, b), strict=True):
        cpu.pack(out, x, support, positions)
    return *packed, support, positions


@_pack.register_fake
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_vectors(a=a, b=b)
    m = torch.library.get_ctx().new_dynamic_size()
    return a.new_empty(m), b.new_empty(m), *_empty_support(a)


def _empty_support(a: Tensor) -> tuple[Tensor, Tensor]:
    n = a.numel()
    return a.new_empty(-(-n // 8), dtype=torch.uint8), a.new_empty(-(-n // cpu.CHUNK) + 1, dtype=torch.int64)


@custom_op("lpk::interpolate_prune_packed_out", mutates_args=("out",), device_types="cpu")
def _interpolate_prune_packed_out(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
    out: Tensor,
) -> None:
    _check_packed(a, b, support, positions, n)
    _check_out_of_packed(out, n, a, b=b, support=support, positions=positions)
    _check_keep(keep, n)
    _check_alphas(alpha)
    _check_threshold(value)
    if keep <= a.numel() and float(value) > 0.0:
        cpu.interpolate_prune_packed(out, a, b, support, positions, alpha, value, last)
        return
    # The zeros that survive are those of lowest index in the whole vector, which is therefore written first.
    everything = torch.zeros(()), torch.tensor(n)
    cpu.interpolate_prune_packed(out, a, b, support, positions, alpha, *everything)
    _magnitude_prune_out(out, keep, out)


@_interpolate_prune_packed_out.register_fake
def _(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
    out: Tensor,
) -> None:
    _check_packed(a, b, support, positions, n)
    _check_vectors(out=out)
    _check_keep(keep, n)


@custom_op("lpk::interpolate_prune_packed", mutates_args=(), device_types="cpu")
def _interpolate_prune_packed(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
) -> Tensor:
    out = a.new_empty(n)
    _interpolate_prune_packed_out(a, b, support, positions, n, alpha, keep, value, last, out)
    return out


@_interpolate_prune_packed.register_fake
def _(
    a: Tensor,
    b: Tensor,
    support: Tensor,
    positions: Tensor,
    n: int,
    alpha: Tensor,
    keep: int,
    value: Tensor,
    last: Tensor,
) -> Tensor:
    _check_packed(a, b, support, positions, n)
    _check_keep(keep, n)
    return a.new_empty(n)
