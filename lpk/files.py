"""JSON, tensors that carry a digest, and nested states, in files that lpk.directories writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lpk.directories import absolute as absolute
from lpk.directories import exists as exists
from lpk.directories import locked as locked
from lpk.directories import make_directory as make_directory
from lpk.directories import write_bytes as write_bytes

Metadata = dict[str, Any]


class FileDamaged(ValueError):
    """A file is truncated, altered, or not what its name says."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Metadata:
    """Raises FileNotFoundError, or FileDamaged where it is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileDamaged(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise FileDamaged(f"{path} is damaged: a JSON object was expected")
    return content


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Writes a safetensors file whose header holds `metadata` and the digest of the tensors; returns the digest."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seal = digest(own)
    header = {"lpk": json.dumps({**metadata, "digest": seal})}
    write_bytes(path, safetensors.torch.save(own, metadata=header))
    return seal


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """Reads what `save_tensors` wrote. Raises FileNotFoundError, or FileDamaged where a single bit was changed."""
    metadata, seal = _header(path)
    tensors = safetensors.torch.load_file(path)
    if digest(tensors) != seal:
        raise FileDamaged(f"{path} was altered: its content does not match its digest")
    return tensors, metadata


def load_metadata(path: Path) -> Metadata:
    """Reads the metadata alone. Raises FileNotFoundError, or FileDamaged where there are none."""
    return _header(path)[0]


def _header(path: Path) -> tuple[Metadata, str]:
    """The metadata, and the digest of the tensors."""
    if path.is_dir():
        raise FileDamaged(f"{path} is a directory; a file is needed")
    if not exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    path.open("rb").close()  # safetensors says of a missing permission, too, that there is no such file
    try:
        with safetensors.safe_open(path, framework="pt") as file:  # it checks that all tensors are there, too
            header = file.metadata() or {}
        metadata = json.loads(header["lpk"])
        return metadata, metadata.pop("digest")
    except (safetensors.SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileDamaged(f"{path} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise FileDamaged(f"{path} was not written by lpk, or its header is damaged") from error


def check_tensor(tensor: Tensor, name: str) -> None:
    """Raises TypeError, calling the tensor `name`, where safetensors can't hold it."""
    try:
        safetensors.torch.save({"": torch.empty(0, dtype=tensor.dtype, layout=tensor.layout, device="cpu")})
    except Exception as error:  # whatever PyTorch and safetensors raise
        layout = "" if tensor.layout == torch.strided else f" and the layout {tensor.layout}"
        raise TypeError(f"{name} is a tensor of {tensor.dtype}{layout}, which can't be stored") from error


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
    """What `taken_apart` took apart."""
    match tree:
        case {"tensor": number}:
            return tensors[number]
        case {"dict": items}:
            return {put_together(key, tensors): put_together(value, tensors) for key, value in items}
        case {"list": parts}:
            return [put_together(part, tensors) for part in parts]
        case {"tuple": parts}:
            return tuple(put_together(part, tensors) for part in parts)
    return tree


def inside(directory: Path, name: object) -> Path:
    """The file `name` of `directory`. A manifest must not reach outside of its own directory: raises FileDamaged."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise FileDamaged(f"{directory}: the manifest names {name!r}, which is not a file of this directory")
    return directory / name
