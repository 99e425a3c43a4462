"""The safetensors format: what is read is held against the file's own length before memory is taken for it."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from lpk import schema
from lpk.schema import Row, string, whole

# The format's names of dtypes, as far as PyTorch has them.
NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, own) for name, own in NAMES.items() if hasattr(torch, own)}
OWN = {dtype: name for name, dtype in DTYPES.items()}

METADATA = "__metadata__"
ENTRY = {"dtype": string, "shape": schema.shape, "data_offsets": Row((whole, whole))}


class Entry(NamedTuple):
    """A tensor of a file; start and stop: of its bytes, counted from the header's end."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What stands before the tensors, which come in the order of the entries."""

    entries: list[Entry]
    metadata: dict[str, str]


def written(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a file: the tensors, the ones with larger values first, so that each is aligned."""
    if METADATA in tensors:
        raise ValueError(f"a tensor is called {METADATA}, which is none in a safetensors file: give it another name")
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header: dict[str, object] = {METADATA: dict(metadata)}
    parts, start = [], 0
    for name in sorted(own, key=lambda name: (-own[name].itemsize, name)):
        parts.append(values(own[name]))
        stop = start + len(parts[-1])
        header[name] = {"dtype": OWN[own[name].dtype], "shape": list(own[name].shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > schema.LIMIT:
        raise ValueError(f"the file's header would have {len(text):,} bytes; {schema.LIMIT:,} are possible")
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def read_header(file: BinaryIO, size: int) -> Header:
    """Reads up to the first tensor of a file of `size` bytes.

    Raises ValueError, saying in one line what is wrong, where the header is damaged or is not of so many bytes.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError("it ends before its header does")
    if length > schema.LIMIT:
        raise ValueError(f"its header has {length:,} bytes; {schema.LIMIT:,} are possible")
    content = schema.parsed(file.read(length))
    schema.check(content, schema.table)
    metadata = content.pop(METADATA, {})
    schema.check(metadata, {string: string}, METADATA)
    schema.check(content, {string: ENTRY})
    entries = []
    for name, entry in content.items():
        name.encode()  # ValueError for half of a pair of surrogates, which is no character
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{schema.shortened(name)} has the dtype {schema.shortened(entry['dtype'])}, which is none of PyTorch's"
            )
        entries.append(Entry(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"]))
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_places(entries, size - 8 - length)
    return Header(entries, metadata)


def read(file: BinaryIO, entries: list[Entry]) -> dict[str, Tensor]:
    """The tensors, which begin where the file stands now. Raises ValueError where one is cut off or is none."""
    tensors = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        into = values(tensor)
        if file.readinto(into) < len(into):  # type: ignore[attr-defined]
            raise ValueError(f"it ends within {schema.shortened(entry.name)}")
        if entry.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise ValueError(f"{schema.shortened(entry.name)} holds other bytes than 0 and 1 for false and true")
        tensors[entry.name] = tensor
    return tensors


def digest(tensors: Mapping[str, Tensor], metadata: str = "") -> str:
    """SHA-256 over the metadata, then over names, dtypes, shapes and values in the order of the names."""
    total = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(values(tensor))
    return total.hexdigest()


def values(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without copying them."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_places(entries: list[Entry], size: int) -> None:
    """Raises ValueError unless the tensors fill `size` bytes one after the other, each as large as it says."""
    end = 0
    for entry in entries:
        bytes_ = math.prod(entry.shape) * entry.dtype.itemsize
        if math.prod(size or 1 for size in entry.shape) >= schema.LARGEST:  # also of an empty tensor: its strides
            raise ValueError(f"{schema.shortened(entry.name)} has the shape {list(entry.shape)}")
        if entry.start != end or entry.stop - entry.start != bytes_:
            raise ValueError(
                f"{schema.shortened(entry.name)} stands at the bytes {entry.start} to {entry.stop}, "
                f"not at {end} to {end + bytes_}"
            )
        end = entry.stop
    if end != size:
        raise ValueError(f"it has {size:,} bytes of tensors; {end:,} are expected")


def check_tensor(tensor: Tensor, name: str) -> None:
    """Raises TypeError, calling the tensor `name`, where safetensors can't hold it."""
    if tensor.layout != torch.strided or tensor.dtype not in OWN:
        layout = "" if tensor.layout == torch.strided else f" and the layout {tensor.layout}"
        raise TypeError(f"{name} is a tensor of {tensor.dtype}{layout}, which can't be stored")
