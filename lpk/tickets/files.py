"""JSON, tensors that carry a digest, and nested states, in files that lpk.tickets.directories writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from torch import Tensor

from lpk import schema
from lpk.tickets import tensors as tensor_file
from lpk.tickets.directories import absolute as absolute
from lpk.tickets.directories import exists as exists
from lpk.tickets.directories import locked as locked
from lpk.tickets.directories import make_directory as make_directory
from lpk.tickets.directories import write_bytes as write_bytes
from lpk.tickets.reading import FileDamaged as FileDamaged
from lpk.tickets.reading import inside as inside
from lpk.tickets.reading import opened as opened
from lpk.tickets.reading import read_bytes as read_bytes

FORMATS = (1, 2)  # of JSON files that can be read
FORMAT = FORMATS[-1]  # of those that are written

Metadata = dict[str, Any]


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
        tensor_file.check_tensor(tensor, repr(name))
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
    return load_seal(path)[0]


def load_seal(path: Path) -> tuple[Metadata, str]:
    """Reads the metadata and the digest alone. Raises FileNotFoundError, or FileDamaged where there are none."""
    with opened(path) as (file, size):
        header = _header(path, file, size, schema.table)
    return header.metadata, header.digest


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
