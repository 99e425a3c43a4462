"""Directories that lpk writes in: files replaced whole or not at all, and nothing touched that is another's."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"
TEMPORARY = re.compile(r"\.lpk-[0-9a-f]{16}\.tmp")


def absolute(path: str | Path) -> Path:
    """The path as it is wherever the process goes: `~` is expanded, links are followed. Raises ValueError for ""."""
    if not str(path):
        raise ValueError("a path is empty; `.` is the present directory")
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError:  # no such user: it is a name like any other
        return Path(path).resolve()


def exists(path: Path) -> bool:
    """Whether there is such a file or directory. Raises PermissionError where that can't be seen."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


# --- writing a file ---------------------------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary file beside `path`, syncs it and renames it; what was there before stays until then.

    Its directory must be there: one that is gone was removed by somebody, and is not made again (see make_directory).

    Raises OSError naming `path` (a full disk, a missing permission), also where it is there but no regular file, or
    where this process had locked a directory above it that is another one now; the old file is then untouched.
    """
    with replaced(path) as file:
        file.write(content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which `write_bytes` writes to; it takes the place of `path` unless the block raises."""
    try:
        folder = path.parent.resolve()
        _check_held(folder)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:  # by descriptor: whatever becomes of the path, this is the directory that was checked
            _check_replaceable(path, directory)
            with _replaced(directory, path.name) as file:
                yield file
        finally:
            os.close(directory)
    except OSError as error:
        reason = "its directory is gone" if error.errno == errno.ENOENT else error.strerror
        raise OSError(error.errno or errno.EINVAL, f"cannot write {path}: {reason}") from error


@contextmanager
def _replaced(directory: int, name: str) -> Iterator[BinaryIO]:
    temporary, descriptor = _temporary(directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _temporary(directory: int) -> tuple[str, int]:
    """A new file, open for writing and locked as long as it is: by that `_sweep` knows that its writer lives."""
    while True:
        name = f".lpk-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=directory)
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return name, descriptor
        os.close(descriptor)  # swept before it was locked


def _check_replaceable(path: Path, directory: int) -> None:
    with suppress(FileNotFoundError):
        mode = os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "a device"
            raise OSError(errno.EEXIST, f"{kind} is there; only a regular file is replaced")


# --- making directories -----------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Makes a directory and its parents where missing, and removes what killed processes left unfinished in it.

    Called once, where a command or a run starts to write there. Raises NotADirectoryError where a file is in the way.
    """
    _check_held(path.resolve())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path} is a file; a directory is needed") from None
    _sweep(path)


def make_inside(path: Path) -> None:
    """make_directory for a directory within a run's own: its parent must be there, and it must not lead elsewhere.

    Raises ValueError for a symbolic link.
    """
    _check_held(path.parent.resolve())
    check_no_links([path])
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is a file; a directory is needed") from None
    _sweep(path)


def check_no_links(paths: Iterable[Path]) -> None:
    """Raises ValueError where one is a symbolic link: what is written and removed there would be another's."""
    for path in paths:
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link; lpk writes within its directory alone: put {path.name} there")


def _sweep(directory: Path) -> None:
    """Removes the temporary files of writers that were killed: regular ones that nobody has locked."""
    for name in os.listdir(directory):
        if not TEMPORARY.fullmatch(name):
            continue
        with suppress(OSError):  # somebody else's, or gone already
            descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(directory / name)
            finally:
                os.close(descriptor)


# --- holding them -----------------------------------------------------------------------------------------------------


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory, which is made where missing, for this process.

    Raises RuntimeError where another process holds it, and ValueError where its `.lock` is a symbolic link.
    """
    make_directory(directory)
    directory = directory.resolve()
    check_no_links([directory / LOCK])
    # without waiting for the other end, should it be a pipe
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise RuntimeError(f"{directory} is in use by another process, or by another call in this one") from None
        raise OSError(error.errno, f"cannot lock {directory}: {error.strerror}") from error
    _held[directory] = descriptor
    try:
        yield
    finally:
        if _held.pop(directory, None) is not None:  # else this is a child that was forked meanwhile
            # not by closing alone: a child that was forked elsewhere than in Python may have a copy
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


_held: dict[Path, int] = {}  # the directories that this process holds, and the open `.lock` of each


def _forget_locks() -> None:
    """In a forked child, which may live longer than the lock: the parent's locks are none of its own."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _check_held(directory: Path) -> None:
    """Raises FileNotFoundError where a directory that is locked, this one or one above it, is not that one any more."""
    for held in (directory, *directory.parents):
        if (descriptor := _held.get(held)) is not None:
            try:
                same = os.path.samestat(os.fstat(descriptor), os.lstat(held / LOCK))
            except (FileNotFoundError, NotADirectoryError):
                same = False
            if not same:
                raise FileNotFoundError(
                    errno.ESTALE, f"{held} was removed or replaced (or its {LOCK}) while it was in use"
                )
