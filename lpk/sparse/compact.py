"""A sparse network as what remains of it, in memory and in a file: docs/export.md describes the bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpk import schema
from lpk.networks.flat import StateDict
from lpk.networks.states import tied
from lpk.ops.cpu import DTYPES
from lpk.schema import number, string, whole
from lpk.tickets import files

KIND = "sparse network"
FORMATS = (1, 2)  # that can be read
FORMAT = FORMATS[-1]  # that is written
PRUNABLE = (torch.float64, *DTYPES)
ENCODINGS = ("bits", "gaps")
SKIP = 255  # the gap byte after which no weight stands

CONTENT = {
    "kind": string,
    "format": whole,
    "order": [string],
    "aliases": {string: string},
    "sparse": {string: schema.shape},
    "keep": whole,
    "weights": whole,
    "density": number,
}

# A tensor of which nothing remains takes no byte of a file, whatever its shape. So that a small file can't take all the
# memory, the pruned entries have at most so many weights, and PER_BYTE more for each byte of the tensors in the file.
FREE, PER_BYTE = 2**24, 256


@dataclass(frozen=True, eq=False)
class Remaining:
    """The weights of one tensor that remain.

    Attributes:
        shape: the tensor's.
        values: [keep], of the tensor's dtype, in the order of the index.
        encoding: of `where`, whichever is smaller. "bits": one for each weight, the lowest of a byte first. "gaps": for
            each that remains, how many before it do not; SKIP for every 255 of them.
        where: uint8 [bytes].
    """

    shape: torch.Size
    values: Tensor
    encoding: str
    where: Tensor

    @classmethod
    def of(cls, tensor: Tensor, mask: Tensor) -> Remaining:
        """The entries of a tensor where the bool mask of its shape is True."""
        flat = mask.detach().cpu().reshape(-1)
        indices = flat.nonzero().view(-1)
        values = tensor.detach().cpu().reshape(-1)[indices]
        gaps = _encode_gaps(indices.numpy())
        if len(gaps) < -(-len(flat) // 8):
            return cls(tensor.shape, values, "gaps", torch.from_numpy(gaps))
        bits = np.packbits(flat.numpy(), bitorder="little")
        return cls(tensor.shape, values, "bits", torch.from_numpy(bits))

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    def mask(self) -> Tensor:
        """bool, of the tensor's shape. Raises ValueError where `where` contradicts the shape or the values."""
        n, keep, where = self.n, len(self.values), self.where.numpy()
        if self.encoding == "bits":
            bits = np.unpackbits(where, bitorder="little")
            fits = len(where) == -(-n // 8) and np.count_nonzero(bits) == np.count_nonzero(bits[:n]) == keep
        else:
            indices = _decode_gaps(where)
            fits = len(indices) == keep and (keep == 0 or int(indices[-1]) < n)
            bits = np.zeros(n if fits else 0, dtype=np.uint8)
            if fits:
                bits[indices] = 1
        if not fits:
            raise ValueError(f"its {self.encoding} do not say where {keep} values of {list(self.shape)} stand")
        return torch.from_numpy(bits[:n]).view(torch.bool).view(self.shape)

    def dense(self, mask: Tensor | None = None) -> Tensor:
        """The tensor; what was pruned is +0. mask: its own, where that is at hand."""
        mask = self.mask() if mask is None else mask
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=self.values.device)
        return dense.masked_scatter_(mask, self.values)


def save_sparse(path: str | Path, state_dict: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Writes a sparse network as one safetensors file, in size about its density times that of the dense one.

    Args:
        state_dict: tensors that safetensors stores; tied ones are written once.
        masks: for each pruned entry (float64, float32, float16 or bfloat16) a bool tensor of its shape: what remains.
            Every bit of the values there is kept; those outside must be zero and come back as +0.

    Raises ValueError or TypeError naming the entry that is not so, OSError where the file can't be written.
    """
    content = sparse_content(state_dict, masks)
    path = files.absolute(path)
    files.make_directory(path.parent)
    files.write_bytes(path, content)


def sparse_content(state_dict: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> bytes:
    """The bytes of the file that `save_sparse` writes; raises what it raises."""
    aliases = tied(state_dict)
    chosen: StateDict = {}
    for name, mask in masks.items():
        _check_mask(name, state_dict, mask)
        own = aliases.get(name, name)
        if not torch.equal(chosen.setdefault(own, mask), mask):
            raise ValueError(f"{name!r} and {own!r} are tied, but their masks differ")
    sparse = {name: Remaining.of(state_dict[name], mask) for name, mask in chosen.items()}
    tensors = {name: tensor for name, tensor in state_dict.items() if name not in aliases and name not in sparse}
    for name, remaining in sparse.items():
        parts = {f"{name}/values": remaining.values, f"{name}/{remaining.encoding}": remaining.where}
        if taken := [part for part in parts if part in state_dict]:
            raise ValueError(f"the state dict has an entry {taken[0]!r}, which is the name of a part of {name!r}")
        tensors |= parts
    header = {
        "kind": KIND,
        "format": FORMAT,
        "order": list(state_dict),
        "aliases": aliases,
        "sparse": {name: list(remaining.shape) for name, remaining in sparse.items()},
        **_count(sparse),
    }
    return files.sealed(tensors, header)[0]


def load_sparse(path: str | Path) -> tuple[StateDict, StateDict]:
    """Reads what `save_sparse` wrote: the state dict, in its order, and the masks; tied entries share their memory.

    Raises FileNotFoundError, or lpk.FileDamaged where it is damaged or another kind of file.
    """
    path = files.absolute(path)
    tensors, header = files.load_tensors(path)
    if header.get("kind") != KIND:
        raise files.FileDamaged(f"{path} is no sparse network: `lpk export` and lpk.sparse.save_sparse write one")
    if header.get("format") not in FORMATS:
        found = schema.shortened(header.get("format"))
        raise files.FileDamaged(f"{path} has format {found}; this version of lpk reads 1 and 2")
    try:
        schema.check(header, CONTENT)
        return _decode(tensors, header)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise files.FileDamaged(f"{path} is damaged: {error}") from error


def _decode(tensors: StateDict, header: Mapping[str, Any]) -> tuple[StateDict, StateDict]:
    stored = sum(tensor.nbytes for tensor in tensors.values())
    sparse = {name: _remaining(name, shape, tensors) for name, shape in header["sparse"].items()}
    count = _count(sparse)
    if any(header[key] != value for key, value in count.items()):
        raise ValueError("the number of weights is not what its header says")
    if count["weights"] > FREE + PER_BYTE * stored:
        raise ValueError(f"it says that {count['weights']:,} weights stand in {stored:,} bytes, which is too many")
    order, aliases = header["order"], header["aliases"]
    if sorted(order) != sorted([*tensors, *sparse, *aliases]):
        raise ValueError("its entries are not those that its header lists")
    if loose := [name for name in aliases.values() if name in aliases or name not in order]:
        raise ValueError(f"its header ties an entry to {schema.shortened(loose[0])}, which is none")
    masks = {name: sparse[name].mask() for name in order if name in sparse}
    state = tensors | {name: sparse[name].dense(mask) for name, mask in masks.items()}
    state |= {name: state[original] for name, original in aliases.items()}
    return {name: state[name] for name in order}, masks


def _remaining(name: str, shape: list[int], tensors: StateDict) -> Remaining:
    """Takes the parts of an entry out of `tensors`."""
    if math.prod(size or 1 for size in shape) >= schema.LARGEST:
        raise ValueError(f"{name!r} has the shape {shape}")
    if f"{name}/values" not in tensors:
        raise ValueError(f"{name!r} has no values")
    encodings = [encoding for encoding in ENCODINGS if f"{name}/{encoding}" in tensors]
    if len(encodings) != 1:
        raise ValueError(f"{name!r} has {' and '.join(encodings) or 'neither bits nor gaps'}")
    values, where = tensors.pop(f"{name}/values"), tensors.pop(f"{name}/{encodings[0]}")
    types = values.dtype in PRUNABLE and where.dtype == torch.uint8
    if not types or values.dim() != 1 or where.dim() != 1:
        raise ValueError(f"the parts of {name!r} have other types or shapes than they must")
    return Remaining(torch.Size(shape), values, encodings[0], where)


def _encode_gaps(indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    skips, rest = np.divmod(np.diff(indices, prepend=-1) - 1, SKIP)
    gaps = np.full(len(indices) + int(skips.sum()), SKIP, dtype=np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = rest
    return gaps


def _decode_gaps(gaps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    stands = gaps != SKIP
    return (np.cumsum(gaps, dtype=np.int64) + np.cumsum(stands))[stands] - 1


def _count(sparse: Mapping[str, Remaining]) -> dict[str, float]:
    keep, weights = sum(len(r.values) for r in sparse.values()), sum(r.n for r in sparse.values())
    return {"keep": keep, "weights": weights, "density": keep / weights if weights else 0.0}


def _check_mask(name: str, state: Mapping[str, Tensor], mask: Tensor) -> None:
    if name not in state:
        raise ValueError(f"the mask of {name!r} belongs to no entry of the state dict")
    tensor = state[name]
    if tensor.dtype not in PRUNABLE:
        raise TypeError(f"{name!r} is {tensor.dtype}; float64, float32, float16 and bfloat16 can be pruned")
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask of {name!r} is {mask.dtype}; bool is needed")
    if mask.shape != tensor.shape:
        raise ValueError(f"the mask of {name!r} has shape {list(mask.shape)}, not {list(tensor.shape)}")
    if bool(((tensor != 0) & ~mask.to(tensor.device)).any()):
        raise ValueError(f"{name!r} has a weight outside its mask that is not zero")
