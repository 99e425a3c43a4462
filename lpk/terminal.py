"""What the `lpk` command prints. Nothing that a user or a file says is markup, and an error is one line."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text


def console(file: IO[str] | None = None, *, stderr: bool = False) -> Console:
    """A console that prints strings as they are; styles are rich.text.Text."""
    return Console(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)


def rank() -> int | None:
    """The number of this process among those that torchrun started; None where it was started alone."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(os.environ["RANK"]) if several else None


def bold(*parts: str) -> Text:
    """Text whose first part, and every second one from there, is bold."""
    return Text.assemble(*((plain(part), "" if i % 2 else "bold") for i, part in enumerate(parts)))


def plain(text: object, keep: str = "") -> str:
    """The text with what is not printable, `keep` excepted, written as Python would: names of files hold anything."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))


def command() -> str:
    """What this process was started with, as a shell reads it."""
    name = Path(sys.argv[0]).name
    return f"{'python -m lpk' if name == '__main__.py' else shlex.quote(name)} {shlex.join(sys.argv[1:])}".strip()


def reason(error: BaseException) -> str:
    """What went wrong, for a line of its own: of an OSError the file and the reason."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    words = "permission denied" if error.errno == errno.EACCES else error.strerror
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' and '.join(names)}: {words}" if names else words
