"""The state dict in a file that others wrote: safetensors, or PyTorch's.

The latter are read with weights_only=True: nothing is unpickled that could run code.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lpk import schema
from lpk.networks.flat import StateDict
from lpk.tickets import files

KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict among other things
ZIP = b"PK\x03\x04"  # what a file of torch.save begins with, older ones excepted
MOST_DICTS, DEEPEST = 10_000, 20  # how many dicts of a file are searched for tensors, and how deep in one another
VIEWS, FREE = 4, 2**20  # so many times the file's bytes, and so many more, may its tensors have: they may share values


def load(path: Path, key: str | None = None) -> StateDict:
    """The tensors of a file by name: of a state dict, or of the one in a PyTorch file that holds other things, too.

    Args:
        key: where in a PyTorch file the state dict stands. None: under the keys in KEYS, else the only dict of tensors.

    Raises OSError, or lpk.FileDamaged where it is damaged, holds no state dict, or would have to be unpickled.
    """
    if path.suffix == ".safetensors":
        return files.load_plain_tensors(path)
    content = _unpickled(path)
    try:
        state = _state_dict(content, key)
        check_plain(state)
        _check_views(state, path.stat().st_size)
    except ValueError as error:
        raise files.FileDamaged(f"{path} {error}") from error
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in state.items()}


def _unpickled(path: Path) -> Any:
    """What a PyTorch file holds; nothing is called that could run code."""
    with files.opened(path) as (file, size):
        if file.read(4) == ZIP:
            _check_zip(path, file, size)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever PyTorch raises
            if found := re.search(r"GLOBAL (\S+)", str(error)):
                what = found[1][: schema.LONGEST]
                raise files.FileDamaged(
                    f"{path} holds a {what}, and unpickling it could run code: save a state_dict() instead"
                ) from error
            raise files.FileDamaged(f"{path} is damaged, or no PyTorch file of tensors") from error


def _check_zip(path: Path, file: BinaryIO, size: int) -> None:
    """Raises FileDamaged where a member's checksum is wrong, which PyTorch does not look at, and for archives that
    torch.save does not write: PyTorch also unpacks what is compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            plain = len({member.filename for member in members}) == len(members)
            plain = plain and all(member.compress_type == zipfile.ZIP_STORED for member in members)
            plain = plain and min((member.header_offset for member in members), default=-1) == 0
            if not plain or sum(member.file_size for member in members) > size:
                raise files.FileDamaged(f"{path} is not packed as torch.save does it: its parts are stored once each")
            damaged = archive.testzip()
    except files.FileDamaged:
        raise
    except Exception as error:  # zipfile raises a dozen kinds of them for damaged files
        raise files.FileDamaged(f"{path} is damaged, or no PyTorch file of tensors") from error
    if damaged is not None:
        raise files.FileDamaged(f"{path} was altered: {damaged!r} in it does not match its checksum")


def _state_dict(content: Any, key: str | None) -> StateDict:
    """The one state dict in what a file holds. Raises ValueError, which goes on after the file's name."""
    if key is not None:
        content = _under(content, key)
    for known in KEYS:
        if isinstance(content, Mapping) and any(_state_dicts(content.get(known), (), set())):
            content = content[known]
    found = dict(_state_dicts(content, (), set()))
    if len(found) > 1:
        names = ", ".join(schema.shortened(name) for name in list(found)[:10])
        raise ValueError(f"holds several state dicts: say by `key` which one is meant ({names})")
    if not found:
        raise ValueError(f"holds no state dict: {_keys(content)}")
    return next(iter(found.values()))


def _under(content: Any, key: str) -> Any:
    """What stands under a key, or under keys with dots between them."""
    inner: Any = content
    for part in [key] if isinstance(content, Mapping) and key in content else key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            raise ValueError(f"has nothing under the key {schema.shortened(key)}: {_keys(content)}")
        inner = inner[part]
    return inner


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return f"its keys are {', '.join(schema.shortened(key) for key in list(content)[:20]) or 'none'}"


def _state_dicts(content: Any, where: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, StateDict]]:
    """The dicts of tensors by name in nested dicts, with their keys; but for an optimizer's, whose keys are numbers."""
    if not isinstance(content, Mapping) or id(content) in seen or len(seen) > MOST_DICTS or len(where) > DEEPEST:
        return
    seen.add(id(content))
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield ".".join(where), dict(content)
        return
    for key, value in content.items():
        if isinstance(key, str) and "optim" not in key:
            yield from _state_dicts(value, (*where, key), seen)


def _check_views(state: Mapping[str, Tensor], size: int) -> None:
    """Raises ValueError, which goes on after the file's name, for views that are much larger than the file's `size`
    bytes: one value may stand for any number of equal ones."""
    seen, total = set(), 0
    for tensor in state.values():
        where = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        total += 0 if where in seen else tensor.numel() * tensor.itemsize
        seen.add(where)
    if total > VIEWS * size + FREE:
        raise ValueError(f"holds tensors of {total:,} bytes in {size:,}: save clones of those that share values")


def check_plain(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError, which goes on after a name of the state dict, for other keys than names and other tensors than
    most; what is no tensor at all is left to others."""
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(f"holds a tensor under {schema.shortened(name)}, which is no name")
        if isinstance(tensor, Tensor) and (kind := _kind(tensor)):
            raise ValueError(f"holds {schema.shortened(name)} as a {kind} tensor: a plain dense one is needed")


def _kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    return "meta" if tensor.is_meta else None if tensor.layout == torch.strided else str(tensor.layout)[6:]
