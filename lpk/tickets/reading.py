"""Files that may be anything: opened where they are regular ones, read within limits. Needs no PyTorch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lpk import schema


class FileDamaged(ValueError):
    """A file is truncated, altered, or not what its name says."""


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


def inside(directory: Path, name: object) -> Path:
    """The file `name` of `directory`. A manifest must not reach outside of its own directory: raises FileDamaged."""
    plain = isinstance(name, str) and name.isascii() and name.isprintable() and len(name) <= 200
    if plain and "/" not in str(name) and name not in ("", ".", ".."):
        return directory / str(name)
    wrong = schema.shortened(name)
    raise FileDamaged(f"{directory}: the manifest names {wrong}, which is not a file of this directory")
