"""Whether what a network computes for a sample may depend on the other samples of its batch.

That is read off the operations that run, never off values: beside each tensor go the least and the greatest number of
the samples that its elements are computed from. An operation that is not known here counts as mixing them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

SAMPLES = 5  # in a batch to look at: few sizes that a forward function names are multiples of it
NONE = (127, -1)  # what is computed from no sample


def _names(of_operations: str) -> frozenset[str]:
    return frozenset(of_operations.split())


# The operations, as PyTorch's dispatcher names them. It marks most of those that compute each element by itself.
ELEMENTWISE = _names("copy fill zero hardswish _to_copy _prelu_kernel special_erf")
ALIKE = _names("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty")
MOVING = _names(
    """view _unsafe_view _reshape_alias permute transpose t expand squeeze unsqueeze cat stack flip roll repeat unfold
    alias detach tril triu view_as_real view_as_complex pixel_shuffle pixel_unshuffle constant_pad_nd"""
)
PICKING = _names(  # along their dim
    """slice select split split_with_sizes unsafe_split unsafe_split_with_sizes unbind index_select gather"""
)
ALONG = _names(
    """sum mean amax amin max min argmax argmin prod var std var_mean std_mean logsumexp any all norm linalg_vector_norm
    _softmax _log_softmax softmax log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp sort topk kthvalue
    median nanmedian mode argsort glu count_nonzero nansum aminmax"""
)
PRODUCTS = _names("mm bmm addmm baddbmm")
ATTENTION = _names(
    """_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"""
)
ROWS = _names(  # each row of what they are given
    """convolution _convolution native_group_norm max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d im2col col2im grid_sampler_2d grid_sampler_3d _transformer_encoder_layer_fwd
    _native_multi_head_attention"""
)
NORMALISING = _names("native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training")
WEIGHTS = _names("weight bias")  # of ROWS, if they are no samples' own
READING = {"tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage"}

Range = tuple[Tensor, Tensor]  # the least and the greatest sample of each element, int8


def mixes(call: Callable[..., Any], fixed: nn.Module, *inputs: Tensor) -> bool:
    """Whether what `call` returns for a sample may depend on others.

    Args:
        call: maps batches [B, ...] to tensors, each of which should be [B, ...].
        fixed: the module whose tensors it reads.
        inputs: one batch for each argument; SAMPLES of them are looked at.
    """
    with torch.inference_mode(False), torch.no_grad():
        samples = [x[torch.arange(SAMPLES, device=x.device) % len(x)].clone() for x in inputs]
        following = _Following(fixed, samples)
        try:
            with _Reading(following), following:
                returned = call(*samples)
            return following.mixed or not all(map(following.is_in_order, tree_leaves(returned)))
        except Exception:  # whatever a stranger's forward raises for so few samples
            return True


class _Reading(TorchFunctionMode):
    """Notes that a tensor's values leave PyTorch."""

    def __init__(self, following: _Following) -> None:
        super().__init__()
        self.following = following

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING:
            self.following.mixed = True
        return func(*args, **(kwargs or {}))


class _Following(TorchDispatchMode):
    """Keeps for every tensor the range of each element; None for one that no sample changes."""

    def __init__(self, fixed: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.mixed = False
        self.ranges: Any = WeakTensorKeyDictionary()
        for x in _tensors([vars(module) for module in fixed.modules()]):
            self.ranges[x] = None
        for x in inputs:
            self._set(x, (_numbers(x), _numbers(x)))

    def is_in_order(self, x: Any) -> bool:
        """Whether each row of a result depends on the sample of its number alone."""
        if not isinstance(x, Tensor) or x not in self.ranges or x.shape[:1] != (SAMPLES,):
            return False
        if self.ranges[x] is None:
            return True
        low, high = self.ranges[x]
        return bool(((low >= _numbers(x)) & (high <= _numbers(x))).all())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if func is torch.ops.aten.lift_fresh.default:
            self.ranges[tensors[0]] = None  # made of numbers
        elif not self.mixed and any(x not in self.ranges for x in tensors):
            self.mixed = True  # it comes from outside, where a sample may have changed it
        if self.mixed:
            return func(*args, **kwargs)
        depends = any(self.ranges[x] is not None for x in tensors)
        rule = self._rule(func)
        if depends and rule is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if not depends:
            for x in outputs:
                self.ranges[x] = None
            return result
        defaults = {a.name: a.default_value for a in func._schema.arguments}
        named = defaults | dict(zip(defaults, args, strict=False)) | kwargs
        found = None if rule is None else rule(func, named, outputs)
        into_fixed = func._schema.is_mutable and any(self.ranges.get(x, found) is None for x in outputs)
        if found is None or into_fixed:
            self.mixed = True
            return result
        for x, of_x in zip(outputs, found, strict=True):
            self._set(x, of_x)
        return result

    def _set(self, x: Tensor, found: Range | None) -> None:
        """Laid out as the tensor is, so that its views have views."""
        if found is None:
            self.ranges[x] = None
        elif (known := self.ranges.get(x)) is not None:  # changed in place
            known[0].copy_(found[0])
            known[1].copy_(found[1])
        elif found[0].stride() == x.stride() and found[0].shape == x.shape:
            self.ranges[x] = found
        else:
            low, high = (torch.empty_strided(x.shape, x.stride(), dtype=torch.int8, device=x.device) for _ in found)
            self.ranges[x] = low.copy_(found[0]), high.copy_(found[1])

    def _rule(self, func: Any) -> Callable[[Any, dict[str, Any], list[Tensor]], Sequence[Range | None] | None] | None:
        """What gives the ranges of an operation's results, or None where it mixes samples."""
        name = func._schema.name.removeprefix("aten::")
        changes = func._schema.is_mutable
        name = name.removesuffix("_") if changes else name
        if torch.Tag.pointwise in func.tags or name in ELEMENTWISE:
            return self._elementwise
        if name == "as_strided" and changes:
            return self._restrided
        if changes:
            return None
        for names, rule in (
            (ALIKE, self._alike),
            (MOVING, self._moved),
            (PICKING, self._picked),
            ({"index"}, self._indexed),
            (ALONG, self._along),
            (PRODUCTS, self._product),
            (ROWS, self._by_rows),
            ({"embedding"}, self._embedded),
            ({"native_layer_norm"}, self._layer_normalised),
            (NORMALISING, self._normalised),
            (ATTENTION, self._attended),
            ({"mkldnn_rnn_layer"}, self._recurrent),
        ):
            if name in names:
                return rule
        return None

    def _of(self, argument: Any) -> list[Range]:
        """The ranges in an argument."""
        return [self.ranges[x] for x in _tensors(argument) if self.ranges[x] is not None]

    def _elementwise(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        low, high = _joined(self._of(named))
        return [(low.expand(x.shape), high.expand(x.shape)) for x in outputs]

    def _alike(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        return [None] * len(outputs)

    def _moved(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        """The same operation moves the ranges."""
        if func is torch.ops.aten.squeeze.default:
            return None  # it does something else to a single sample

        def moved(i: int) -> list[Tensor]:
            def range_of(x: Any) -> Any:
                if not isinstance(x, Tensor) or x is named.get("index"):
                    return x
                known = self.ranges[x]
                return torch.full_like(x, NONE[i], dtype=torch.int8) if known is None else known[i]

            arguments = {name: tree_map(range_of, value) for name, value in named.items()}
            if "value" in arguments:  # of padding
                arguments["value"] = NONE[i]
            return _tensors(_called(func, arguments))

        return list(zip(moved(0), moved(1), strict=True))

    def _picked(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        """What is picked must not be samples by their places in the batch."""
        source, dim = self.ranges[named["self"]], named["dim"]
        if source is None or self._of(named.get("index")):
            return None
        whole = (named.get("start") or 0) == 0 and (named.get("end") or sys.maxsize) == sys.maxsize
        if not (func._schema.name == "aten::slice" and whole) and _vary(source, dim):
            return None
        return self._moved(func, named, outputs)

    def _indexed(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        source, dim = self.ranges[named["self"]], 0
        if source is None or self._of(named["indices"]):
            return None
        for index in named["indices"]:
            dims = 1 if index is None or index.dtype != torch.bool else index.dim()
            if index is not None and any(_vary(source, d) for d in range(dim, dim + dims)):
                return None
            dim += dims
        return [(func(source[0], named["indices"]), func(source[1], named["indices"]))]

    def _along(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        source = named["self"] if "self" in named else named["input"]
        dims, every = named.get("dim"), tuple(range(source.dim()))
        low, high = self.ranges[source]
        of_dims = every if dims is None or dims == [] else tuple(d % source.dim() for d in _listed(dims))
        low, high = low.amin(of_dims, keepdim=True), high.amax(of_dims, keepdim=True)

        def shaped(part: Tensor, x: Tensor) -> Tensor:
            kept = [n for d, n in enumerate(part.shape) if x.dim() == part.dim() or d not in of_dims]
            return part.reshape(kept).expand(x.shape)

        return [(shaped(low, x), shaped(high, x)) for x in outputs]

    def _product(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        names = [a.name for a in func._schema.arguments if a.name in named and isinstance(named[a.name], Tensor)]
        *added, left, right = (named[name] for name in names)
        found = self._of(added)
        for x, dim in ((left, -1), (right, -2)):
            found += [(low.amin(dim, keepdim=True), high.amax(dim, keepdim=True)) for low, high in self._of(x)]
        low, high = _joined(found)
        return [(low.expand(x.shape), high.expand(x.shape)) for x in outputs]

    def _by_rows(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        if any(self._of(value) for name, value in named.items() if name in WEIGHTS):
            return None
        rows = [(low.flatten(1).amin(1), high.flatten(1).amax(1)) for low, high in self._of(named) if low.dim() > 1]
        if len({len(low) for low, _ in rows}) != 1 or len(rows) != len(self._of(named)):
            return None
        low, high = _joined(rows)
        return [_rows_of(x, low, high) if x.shape[:1] == low.shape else _anything(x) for x in outputs]

    def _embedded(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        if self._of(named["weight"]):
            return None
        low, high = self.ranges[named["indices"]]
        return [(low[..., None].expand(x.shape), high[..., None].expand(x.shape)) for x in outputs]

    def _layer_normalised(
        self, func: Any, named: dict[str, Any], outputs: list[Tensor]
    ) -> Sequence[Range | None] | None:
        if self._of([named["weight"], named["bias"]]):
            return None
        dims = tuple(range(-len(named["normalized_shape"]), 0))
        low, high = self.ranges[named["input"]]
        low, high = low.amin(dims, keepdim=True), high.amax(dims, keepdim=True)
        return [(low.expand(x.shape), high.expand(x.shape)) for x in outputs]

    def _normalised(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        """By statistics that are given, or those of each channel."""
        if len(self._of(named)) != 1:
            return None
        low, high = self.ranges[named["input"]]
        if named.get("training"):
            dims = (0, *range(2, low.dim()))
            low, high = low.amin(dims, keepdim=True), high.amax(dims, keepdim=True)
        x, *others = outputs
        return [(low.expand(x.shape), high.expand(x.shape)), *map(_anything, others)]

    def _attended(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        x, *others = outputs
        low, high = _joined([(low.amin((-2, -1), True), high.amax((-2, -1), True)) for low, high in self._of(named)])
        return [(low.expand(x.shape), high.expand(x.shape)), *map(_anything, others)]

    def _recurrent(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        if len(self._of(named)) != 1:
            return None
        x, *others = outputs
        low, high = self.ranges[named["input"]]
        low, high = low.amin((0, 2), True), high.amax((0, 2), True)
        return [(low.expand(x.shape), high.expand(x.shape)), *map(_anything, others)]

    def _restrided(self, func: Any, named: dict[str, Any], outputs: list[Tensor]) -> Sequence[Range | None] | None:
        """Strides of dimensions of one entry do nothing."""
        low, _ = found = self.ranges[named["self"]]
        wanted = zip(low.shape, low.stride(), named["stride"], strict=True)
        same = tuple(named["size"]) == low.shape and all(n == 1 or old == new for n, old, new in wanted)
        return [found] if same and named["storage_offset"] in (None, low.storage_offset()) else None


def _called(func: Any, named: dict[str, Any]) -> Any:
    arguments = func._schema.arguments
    by_name = {a.name: named[a.name] for a in arguments if a.kwarg_only}
    return func(*(named[a.name] for a in arguments if not a.kwarg_only), **by_name)


def _joined(ranges: Sequence[Range]) -> Range:
    """Of what is computed from elements of all of these."""
    return reduce(torch.minimum, [low for low, _ in ranges]), reduce(torch.maximum, [high for _, high in ranges])


def _rows_of(x: Tensor, low: Tensor, high: Tensor) -> Range:
    shape = (-1, *[1] * (x.dim() - 1))
    return low.view(shape).expand(x.shape), high.view(shape).expand(x.shape)


def _anything(x: Tensor) -> Range:
    """Of what may depend on all samples."""
    return torch.zeros_like(x, dtype=torch.int8), torch.full_like(x, SAMPLES - 1, dtype=torch.int8)


def _numbers(x: Tensor) -> Tensor:
    """Of the rows of x, to be compared with it."""
    rows = torch.arange(SAMPLES, dtype=torch.int8, device=x.device)
    return rows.view(-1, *[1] * (x.dim() - 1))


def _vary(ranges: Range, dim: int) -> bool:
    """Whether different samples stand along a dimension."""
    return any(not torch.equal(part.amin(dim), part.amax(dim)) for part in ranges)


def _listed(dims: Any) -> list[int]:
    return list(dims) if isinstance(dims, list | tuple) else [dims]


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
