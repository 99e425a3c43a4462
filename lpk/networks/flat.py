"""A model as two flat vectors: its prunable weights, and the rest.

The index runs through the prunable tensors in state-dict order, each in contiguous order, without padding. The rest
holds every other floating-point entry (biases, BatchNorm's parameters and statistics, layers that are not pruned) as
float32. Integer entries stand in neither, nor do complex buffers. Entries that share one tensor (tied parameters) count
once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lpk import schema
from lpk.networks.prunable import Prunable, prunable_names
from lpk.networks.states import owners, state_names
from lpk.networks.states import tied as tied
from lpk.networks.wrappers import pruned_tensors, unwrapped
from lpk.ops.cpu import DTYPES
from lpk.schema import Row, Rule, string

StateDict = dict[str, Tensor]

# What a layout is as JSON. Format 1 had an object of tensors, each with an array of its dtype and its shape.
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
DTYPE = Rule(f"one of {', '.join(DTYPE_NAMES)}", lambda value: type(value) is str and value in DTYPE_NAMES)
DTYPE_AND_SHAPE = Rule(
    "an array of a dtype and a shape",
    lambda value: type(value) is list and bool(value) and DTYPE.fits(value[0]) and schema.shape.fits(value[1:]),
)
ENTRIES = ([Row((string, DTYPE, schema.shape))], {string: DTYPE_AND_SHAPE})
LAYOUT = {"weights": ENTRIES, "rest": ENTRIES, "integers": [string], "aliases": {string: string}, "order": [string]}


class Entry(NamedTuple):
    """One tensor of a state dict and its place in a flat vector."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.shape.numel())


class Flat(NamedTuple):
    """The values of a state dict: weights [n] of the layout's dtype, rest [m] float32, integer tensors by name."""

    weights: Tensor
    rest: Tensor
    integers: StateDict

    def to(self, device: torch.device | str) -> Flat:
        """The vectors on a device: themselves where they are there. Integers stay where they are."""
        return Flat(self.weights.to(device), self.rest.to(device), self.integers)


@dataclass(frozen=True)
class Layout:
    """Where each entry of a state dict stands in the flat vectors."""

    weights: tuple[Entry, ...]
    rest: tuple[Entry, ...]
    integers: tuple[str, ...]
    aliases: Mapping[str, str]  # a tied entry, and the entry whose tensor it shares
    order: tuple[str, ...]  # all names, as in the state dict

    @classmethod
    def of(cls, state: Mapping[str, Tensor], prunable: Collection[str]) -> Layout:
        """The layout of a state dict, given the names of its prunable tensors.

        Raises ValueError for a prunable name that is not there or not floating-point and for a mix of dtypes, TypeError
        for dtypes that are not supported and for what is not a dense tensor.
        """
        if missing := [name for name in prunable if name not in state]:
            raise ValueError(f"{missing[0]!r} is to be pruned, but the model has no such entry")
        aliases = tied(state)
        chosen = {aliases.get(name, name) for name in prunable}
        weights: list[Entry] = []
        rest: list[Entry] = []
        integers: list[str] = []
        sizes = [0, 0]
        for name, tensor in state.items():
            if name in aliases:
                continue
            if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in DTYPES):
                raise TypeError(f"{name!r} is {tensor.dtype}; float32, float16 and bfloat16 are supported")
            if not tensor.is_floating_point():
                if name in chosen:
                    raise ValueError(f"{name!r} is to be pruned, but it is {tensor.dtype}")
                integers.append(name)
                continue
            which = 0 if name in chosen else 1
            (weights, rest)[which].append(Entry(name, tensor.shape, tensor.dtype, sizes[which]))
            sizes[which] += tensor.numel()
        if not weights:
            raise ValueError("nothing is prunable: pass `prunable`, the names of the tensors to prune")
        for entry in weights:
            if entry.dtype != weights[0].dtype:
                raise ValueError(
                    f"{entry.name!r} is {entry.dtype} but {weights[0].name!r} is {weights[0].dtype}; "
                    "prunable weights share one dtype"
                )
        return cls(tuple(weights), tuple(rest), tuple(integers), aliases, tuple(state))

    @classmethod
    def of_model(cls, model: nn.Module, prunable: Prunable = None) -> Layout:
        """The layout of a model; `prunable` is a predicate (name, parameter) -> bool or names, see `prunable_names`.

        Raises TypeError for a complex parameter, and as `of` does.
        """
        for name, parameter in unwrapped(model).named_parameters():
            if parameter.is_complex():
                raise TypeError(
                    f"the parameter {name!r} is {parameter.dtype}, which is not interpolated; hold it as real numbers "
                    "(torch.view_as_real)"
                )
        return cls.of(unwrapped(model).state_dict(), prunable_names(model, prunable))

    @property
    def n(self) -> int:
        """How many weights are prunable."""
        return self.weights[-1].span.stop

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    @property
    def prunable(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.weights)

    @property
    def spared(self) -> tuple[str, ...]:
        """What is not pruned of the tensors of two or more dimensions: the last linear layer, embeddings."""
        return tuple(entry.name for entry in self.rest if len(entry.shape) > 1)

    def difference(self, state: Mapping[str, Tensor]) -> str | None:
        """What keeps a state dict from fitting this layout, in words; None if it fits."""
        for name in self.order:
            if name not in state and name not in self.aliases:
                return f"{name!r} is missing"
        for name in state:
            if name not in self.order:
                return f"{name!r} is not expected"
        for entry in (*self.weights, *self.rest):
            if state[entry.name].shape != entry.shape:
                return f"{entry.name!r} has shape {tuple(state[entry.name].shape)}, not {tuple(entry.shape)}"
            if state[entry.name].dtype != entry.dtype:
                return f"{entry.name!r} is {state[entry.name].dtype}, not {entry.dtype}"
        return None

    def flatten(self, state: Mapping[str, Tensor]) -> Flat:
        """The values of a state dict that fits, on the CPU. Raises ValueError where a weight is NaN or infinite.

        The rest may be: buffers are, where a mask holds −inf. See `check_finite` and `contradiction`.
        """
        integers = {name: state[name].detach().cpu().clone() for name in self.integers}
        weights = _gather(self.weights, state, self.dtype)
        if bad := _first(~torch.isfinite(weights), weights, self.weights):
            raise ValueError(f"{bad}; every weight must be finite")
        return Flat(weights, _gather(self.rest, state, torch.float32), integers)

    def check_finite(self, flat: Flat, parameters: Collection[str]) -> None:
        """Raises ValueError where one of these entries of the rest is NaN or infinite."""
        bad = ~torch.isfinite(flat.rest)
        for entry in self.rest if bad.any() else ():
            if entry.name not in parameters:
                bad[entry.span] = False
        if found := _first(bad, flat.rest, self.rest):
            raise ValueError(f"{found}; every parameter must be finite")

    def contradiction(self, flat: Flat, other: Flat) -> str | None:
        """Where two networks can't be mixed, in words: "ENTRY is this, not that"; None where they can.

        What is NaN or infinite in the first must be the same in the other, and so must complex tensors and all shapes.
        """
        bad = ~torch.isfinite(flat.rest)
        if bad.any():
            bad &= flat.rest.view(torch.int32) != other.rest.view(torch.int32)
        if found := _first(bad, flat.rest, self.rest, other.rest):
            return found
        for name in self.integers:
            a, b = flat.integers[name], other.integers[name]
            if a.shape != b.shape:
                return f"{name!r} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
            if a.is_complex() and not torch.equal(a, b) and not torch.allclose(a, b, 0.0, 0.0, equal_nan=True):
                return f"{name!r} is {a.dtype} and not the same"
        return None

    def unflatten(self, flat: Flat) -> StateDict:
        """A state dict of its own memory, tied entries sharing theirs, in the order of the original."""
        state = dict(flat.integers)
        for entries, vector in ((self.weights, flat.weights), (self.rest, flat.rest)):
            for entry in entries:
                state[entry.name] = vector[entry.span].to(entry.dtype, copy=True).view(entry.shape)
        for name, original in self.aliases.items():
            state[name] = state[original]
        return {name: state[name] for name in self.order}

    def masks(self, mask: Tensor) -> StateDict:
        """A flat mask as one bool tensor for each prunable entry."""
        return {entry.name: mask[entry.span].view(entry.shape) for entry in self.weights}

    def to_prune(self, model: nn.Module, flat: Flat, mask: Tensor) -> None:
        """Writes these values into a model and prunes it by the mask [n] with torch.nn.utils.prune.custom_from_mask.

        The model then has `weight_orig` and `weight_mask` in place of `weight`, and trains with its pruned weights at
        zero. Whatever it was pruned by before is undone. Raises ValueError for another network, with which nothing
        but that happens.
        """
        model = unwrapped(model)
        for module, name in pruned_tensors(model):
            prune.remove(module, name)
        if problem := self.difference(model.state_dict()):
            raise ValueError(f"the tickets are of another network than the model: {problem}")
        model.load_state_dict(self.unflatten(flat))
        masks, names = self.masks(mask), state_names(model)
        for parameter, module, name in list(owners(model)):
            own = masks.get(self.aliases.get(names[parameter], names[parameter])) if parameter in names else None
            if own is not None:
                prune.custom_from_mask(module, name, own.to(parameter.device))

    def to_json(self) -> dict[str, Any]:
        weights, rest = (
            [[entry.name, str(entry.dtype).removeprefix("torch."), list(entry.shape)] for entry in entries]
            for entries in (self.weights, self.rest)
        )
        return {
            "weights": weights,
            "rest": rest,
            "integers": list(self.integers),
            "aliases": dict(self.aliases),
            "order": list(self.order),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Layout:
        """What `to_json` gave, also in format 1. Raises ValueError where it contradicts itself."""
        schema.check(content, LAYOUT, "layout")
        order = {name: i for i, name in enumerate(content["order"])}
        names = [*content["aliases"], *content["integers"]]

        def entries(listed: Any) -> tuple[Entry, ...]:
            if isinstance(listed, dict):  # format 1; the order of the members may be another program's
                listed = [[name, dtype, shape] for name, (dtype, *shape) in listed.items()]
                listed.sort(key=lambda entry: order.get(entry[0], 0))
            names.extend(name for name, _, _ in listed)
            result: list[Entry] = []
            offset = 0
            for name, dtype, shape in listed:
                if offset + math.prod(size or 1 for size in shape) >= schema.LARGEST:
                    raise ValueError(f"the layout's {name!r} has the shape {shape}")
                result.append(Entry(name, torch.Size(shape), DTYPE_NAMES[dtype], offset))
                offset += math.prod(shape)
            return tuple(result)

        weights, rest = entries(content["weights"]), entries(content["rest"])
        if not weights or any(entry.dtype != weights[0].dtype for entry in weights):
            raise ValueError("the layout's weights are not of one dtype")
        if sorted(names) != sorted(content["order"]) or len(order) < len(names):
            raise ValueError("the layout's order does not name every tensor once")
        if loose := [name for name, own in content["aliases"].items() if own not in order or own in content["aliases"]]:
            raise ValueError(f"the layout's {loose[0]!r} is tied to no tensor")
        return cls(weights, rest, tuple(content["integers"]), content["aliases"], tuple(content["order"]))


def _gather(entries: tuple[Entry, ...], state: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    vector = torch.empty(entries[-1].span.stop if entries else 0, dtype=dtype, device="cpu")
    for entry in entries:
        vector[entry.span] = state[entry.name].detach().reshape(-1).to(vector)
    return vector


def _first(bad: Tensor, vector: Tensor, entries: tuple[Entry, ...], other: Tensor | None = None) -> str | None:
    """The first bad place of a vector, in words, with its value there and the other's; None if there is none."""
    if not bad.any():
        return None
    at = int(torch.nonzero(bad)[0])
    entry = next(e for e in entries if e.span.start <= at < e.span.stop)
    place = torch.tensor(at - entry.offset, dtype=torch.int64, device="cpu")
    index = [int(i) for i in torch.unravel_index(place, entry.shape)]
    return f"{entry.name}{index or ''} is {float(vector[at])}" + ("" if other is None else f", not {float(other[at])}")
