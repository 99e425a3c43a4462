"""Names that a user picks one of: an error says which there are, and which one was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 100  # characters of a name that are compared

# What lpk.imp and pools prune by: the magnitudes of all weights together, or of each layer by themselves.
SCOPES = ("global", "layer")


def check(what: str, value: object, possible: Iterable[str]) -> None:
    """Raises ValueError where `value`, given for `what`, is none of these names."""
    possible = list(possible)
    if value not in possible:
        listed = ", ".join(possible)
        raise ValueError(f"{what} is {value!r}; it must be one of {listed}{suggestion(value, possible)}")


def suggestion(value: object, possible: Iterable[str]) -> str:
    """`. Did you mean 'NAME'?`, to end a message with, for the name that is most like `value`; "" if none is."""
    names = {_plain(name): name for name in possible}
    close = difflib.get_close_matches(_plain(value), names, n=1) if isinstance(value, str) else []
    return f". Did you mean {names[close[0]]!r}?" if close else ""


def _plain(name: object) -> str:
    return str(name)[:LONGEST].lower().replace("_", "-")
