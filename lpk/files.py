"""JSON, tensors that carry a digest, and nested states, in files that lpk.directories writes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from lpk import schema
from lpk import tensors as tensor_file
from lpk.directories import absolute as absolute
from lpk.directories import exists as exists
from lpk.directories import locked as locked
from lpk.directories import make_directory as make_directory
from lpk.directories import write_bytes as write_bytes

FORMATS = (1, 2)  # of JSON files that can be read
FORMAT = FORMATS[-1]  # of those that are written

Metadata = dict[str, Any]


class FileDamaged(ValueError):
    """A file is truncated, altered, or not what its name says."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with the digest of its content as one more member, `digest`."""
    text = json.dumps(content)
    sealed = json.dumps({**content, "digest": _digest(text)}, indent=2) + "\n"
    if len(sealed) > schema.LIMIT:
        raise ValueError(f"{path} would have {len(sealed):,} bytes; a JSON file has at most {schema.LIMIT:,}")
    write_bytes(path, sealed.encode())


def read_json(path: Path, description: Any = schema.table) -> Metadata:
    """The content of a JSON file, without its digest; files of format 1 have none.

    Args:
        description: what it has to look like, see lpk.schema.

    Raises FileNotFoundError, or FileDamaged where it is no JSON object, was altered, or is not as described.
    """
    content = read_bytes(path)
    try:
        found = schema.parsed(content)
        schema.check(found, schema.table)
        if "format" in found and not (type(found["format"]) is int and found["format"] in FORMATS):
            raise ValueError(f"its format is {schema.shortened(found['format'])}; this version of lpk reads 1 and 2")
        if "digest" in found:
            if found.pop("digest") != _digest(content.decode()):
                raise ValueError("it was altered: its content does not match its digest")
        elif found.get("format", 1) != 1:
            raise ValueError("its digest is missing")
        schema.check(found, description)
    except ValueError as error:
        raise FileDamaged(f"{path} is damaged: {error}") from error
    return dict(found)


def _digest(text: str) -> str:
    """SHA-256 of a JSON object but for its member `digest`, however it is laid out: of the text in ASCII with the names
    sorted, no blanks, 1.0 as 1, and -0 as -0.0."""
    content = json.loads(
        text, parse_float=_plain, parse_int=lambda whole: _plain(whole) if whole == "-0" else int(whole)
    )
    content.pop("digest", None)
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def _plain(text: str) -> float:
    """A whole number where it is one; zero keeps its sign."""
    value = float(text)
    return int(value) if value.is_integer() and (value or text[0] != "-") else value


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, and its length in bytes.

    Raises FileNotFoundError, another OSError where it can't be read, FileDamaged for a directory, a pipe or a device.
    """
    try:  # O_NONBLOCK: to open a pipe would wait for somebody who writes to it
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        link = "is a link to what does not exist" if path.is_symlink() else "does not exist"
        raise FileNotFoundError(f"{path} {link}") from None
    except OSError as error:
        raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        what = "a directory; a" if stat.S_ISDIR(status.st_mode) else "a pipe or a device; a regular"
        raise FileDamaged(f"{path} is {what} file is needed")
    with os.fdopen(descriptor, "rb") as file:
        yield file, status.st_size


def read_bytes(path: Path) -> bytes:
    """The content of a text file. Raises as `opened` does, and FileDamaged for more than schema.LIMIT bytes."""
    with opened(path) as (file, size):
        if size > schema.LIMIT:
            raise FileDamaged(f"{path} has {size:,} bytes; at most {schema.LIMIT:,} are read")
        return file.read(size)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes a safetensors file whose header holds `metadata` and the digest of these and the tensors; returns it.

    Raises TypeError or ValueError naming what can't be stored.
    """
    content, digest = sealed(tensors, metadata)
    write_bytes(path, content)
    return digest


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> tuple[bytes, str]:
    """The content of the file that `save_tensors` writes, and the digest."""
    for name, tensor in tensors.items():
        check_tensor(tensor, repr(name))
    text = json.dumps(metadata)
    digest = tensor_file.digest(tensors, text)
    return tensor_file.written(tensors, {"lpk": text, "digest": digest}), digest


def load_tensors(
    path: Path, description: Any = schema.table, *, digest: str | None = None
) -> tuple[dict[str, Tensor], Metadata]:
    """Reads what `save_tensors` wrote.

    Args:
        description: what the metadata have to look like, see lpk.schema.
        digest: the file's, where it is known.

    Raises FileNotFoundError, or FileDamaged where a bit was changed that has a meaning.
    """
    with opened(path) as (file, size):
        entries, metadata, text, seal = _header(path, file, size, description)
        if digest is not None and digest != seal:
            raise FileDamaged(f"{path} is another file than the one that is listed: its digest differs")
        try:
            tensors = tensor_file.read(file, entries)
        except ValueError as error:
            raise FileDamaged(f"{path} is damaged: {error}") from error
    if tensor_file.digest(tensors, text) != seal:
        raise FileDamaged(f"{path} was altered: its content does not match its digest")
    return tensors, metadata


def load_plain_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file. Raises FileNotFoundError or FileDamaged."""
    try:
        with opened(path) as (file, size):
            return tensor_file.read(file, tensor_file.read_header(file, size).entries)
    except FileDamaged:
        raise
    except ValueError as error:
        raise FileDamaged(f"{path} is damaged or not a safetensors file: {error}") from error


def load_metadata(path: Path) -> Metadata:
    """Reads the metadata alone. Raises FileNotFoundError, or FileDamaged where there are none."""
    with opened(path) as (file, size):
        return _header(path, file, size, schema.table).metadata


class _Header(NamedTuple):
    """Of a sealed file: its tensors, the metadata, as text where the digest covers them, and the digest."""

    entries: list[tensor_file.Entry]
    metadata: Metadata
    text: str
    digest: str


def _header(path: Path, file: BinaryIO, size: int, description: Any) -> _Header:
    try:
        header = tensor_file.read_header(file, size)
    except ValueError as error:
        raise FileDamaged(f"{path} is damaged or not a safetensors file: {error}") from error
    if "lpk" not in header.metadata:
        raise FileDamaged(f"{path} was not written by lpk, or its header is damaged")
    text = header.metadata["lpk"]
    try:
        metadata = schema.parsed(text.encode())
        schema.check(metadata, schema.table)
        if "digest" in header.metadata:
            seal = header.metadata["digest"]
        else:  # format 1, whose digest does not cover the metadata, among which it stands
            schema.check(metadata, {"digest": schema.string})
            text, seal = "", metadata.pop("digest")
        schema.check(metadata, description)
    except ValueError as error:
        raise FileDamaged(f"{path} was not written by lpk, or its header is damaged: {error}") from error
    return _Header(header.entries, dict(metadata), text, seal)


def check_tensor(tensor: Tensor, name: str) -> None:
    """Raises TypeError, calling the tensor `name`, where safetensors can't hold it."""
    if tensor.layout != torch.strided or tensor.dtype not in tensor_file.OWN:
        layout = "" if tensor.layout == torch.strided else f" and the layout {tensor.layout}"
        raise TypeError(f"{name} is a tensor of {tensor.dtype}{layout}, which can't be stored")


def taken_apart(value: object, tensors: dict[str, Tensor], name: str) -> Any:
    """Nested dicts, lists and tuples as JSON for `put_together`; their tensors are put into `tensors`, by number.

    Raises TypeError, calling the value `name`, for what is neither these nor a number, a string or None.
    """
    if isinstance(value, Tensor):
        check_tensor(value, name)
        number = str(len(tensors))
        tensors[number] = value
        return {"tensor": number}
    if isinstance(value, Mapping):  # as pairs: JSON has no keys but strings
        items = [[taken_apart(k, tensors, name), taken_apart(v, tensors, f"{name}[{k!r}]")] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        parts = [taken_apart(part, tensors, f"{name}[{i}]") for i, part in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}; tensors, numbers, strings, None, and dicts, lists and tuples of these "
        "can be stored"
    )


def put_together(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `taken_apart` took apart. Raises ValueError where it did not make this tree."""
    try:
        return _put_together(tree, tensors)
    except (RecursionError, TypeError):  # or a key that can't be one
        raise ValueError(f"{schema.shortened(tree)} stands for no value") from None


def _put_together(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    match list(tree.items()) if type(tree) is dict else []:
        case [("tensor", str(number))] if number in tensors:
            return tensors[number]
        case [("dict", list(items))] if all(type(item) is list and len(item) == 2 for item in items):
            return {_put_together(key, tensors): _put_together(value, tensors) for key, value in items}
        case [("list", list(parts))]:
            return [_put_together(part, tensors) for part in parts]
        case [("tuple", list(parts))]:
            return tuple(_put_together(part, tensors) for part in parts)
    raise ValueError(f"{schema.shortened(tree)} stands for no value")


def inside(directory: Path, name: object) -> Path:
    """The file `name` of `directory`. A manifest must not reach outside of its own directory: raises FileDamaged."""
    plain = isinstance(name, str) and name.isascii() and name.isprintable() and len(name) <= 200
    if plain and "/" not in str(name) and name not in ("", ".", ".."):
        return directory / str(name)
    wrong = schema.shortened(name)
    raise FileDamaged(f"{directory}: the manifest names {wrong}, which is not a file of this directory")
