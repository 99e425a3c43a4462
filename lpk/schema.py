"""JSON of files that may be damaged: parsed within limits, and held against a description before anything uses it.

A description is a Rule; a list of one description, for an array; a dict, for an object: by name what its members are (a
name that ends in "?" may be missing, others may be there), or {string: description} for any names; a tuple of
descriptions, of which one has to fit; or a Row.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIMIT = 32 * 2**20  # bytes of one JSON text: Python needs up to 25 times as many to hold it
LARGEST = 2**63  # no whole number in a file reaches it
DIMENSIONS = 64  # PyTorch's limit
LONGEST = 120  # characters of a value in a message


@dataclass(frozen=True)
class Rule:
    """What a single value has to be, in words, and the test of it."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Row:
    """An array of so many values, each with a description of its own."""

    items: tuple[Any, ...]


def is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST  # not isinstance: true and false are no numbers


string = Rule("a string", lambda value: type(value) is str)
flag = Rule("true or false", lambda value: type(value) is bool)
null = Rule("null", lambda value: value is None)
whole = Rule("a whole number from 0 on", is_whole)
number = Rule("a number", lambda value: type(value) is float or (type(value) is int and abs(value) < LARGEST))
shape = Rule(
    f"an array of at most {DIMENSIONS} whole numbers from 0 on",
    lambda value: type(value) is list and len(value) <= DIMENSIONS and all(map(is_whole, value)),
)
anything = Rule("anything", lambda value: True)
table = {string: anything}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def parsed(content: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, saying in one line what is wrong with it."""
    if len(content) > LIMIT:
        raise ValueError(f"it has {len(content):,} bytes of JSON; {LIMIT:,} are possible")
    try:
        return json.loads(content.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def check(value: Any, description: Any, where: str = "") -> None:
    """Raises ValueError, saying where in `value` something else stands than the description says."""
    match description:
        case Rule():
            fits = description.fits(value)
        case Row():
            fits = type(value) is list and len(value) == len(description.items)
        case tuple():
            chosen = next((each for each in description if _is_of(value, each)), None)
            fits = chosen is not None
        case _:
            fits = type(value) is type(description)
    if not fits:
        raise ValueError(f"{where or 'its content'} is {shortened(value)}; it must be {_words(description)}")
    match description:
        case Row():
            for i, (item, each) in enumerate(zip(value, description.items, strict=True)):
                check(item, each, f"{where}[{i}]")
        case tuple():
            check(value, chosen, where)
        case list():
            for i, item in enumerate(value):
                check(item, description[0], f"{where}[{i}]")
        case dict():
            _check_members(value, description, where)


def shortened(value: object) -> str:
    """A value as Python writes it, on one line and not too long."""
    text = _short.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name stands twice in one of its JSON objects")
    return value


def _check_members(value: dict[str, Any], description: dict[Any, Any], where: str) -> None:
    if string in description:
        for name, member in value.items():
            check(member, description[string], f"{where}[{shortened(name)}]")
        return
    for name, each in description.items():
        member = name.removesuffix("?")
        inside = f"{where}.{member}".lstrip(".")
        if member in value:
            check(value[member], each, inside)
        elif member == name:
            raise ValueError(f"{inside} is missing")


def _is_of(value: Any, description: Any) -> bool:
    """Whether a value is of the description's kind, whatever it contains."""
    if isinstance(description, Rule):
        return description.fits(value)
    return type(value) is (list if isinstance(description, Row) else type(description))


def _words(description: Any) -> str:
    match description:
        case Rule():
            return description.words
        case Row():
            return f"an array of {len(description.items)}"
        case tuple():
            return " or ".join(map(_words, description))
        case list():
            return "an array"
    return "an object"
