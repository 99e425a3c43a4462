"""Nested dicts, lists and tuples with tensors in them, as JSON and tensors by number: a trainer's state in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lpk import schema
from lpk.tickets.tensors import check_tensor


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
