"""Decoded samples of a folder in one file, mapped into memory: what is read again and again is decoded once.

The file is a .npy of uint8 [N, C, H, W]. It is made when the samples are first read, replaced whole or not at all, and
may be removed at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpk.tickets import directories

LOG = logging.getLogger(__name__)
VERSION = 1  # of what a file holds
SPARE = 1 << 30  # bytes that the disk must have left afterwards


class Decoded:
    """Where samples lie decoded, and what they are; of them, only what is read.

    Args:
        directory: of the files.
        name: that the file's name begins with.
        root: of the images.
        files: the images within it, in the order of the samples.
        indices: what the samples are called by, int64 [N], each once.
        made_by: what made tensors of the images, in words: another transform, or version of one, is another file.
        transform: the same, as it is called.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        root: Path,
        files: Sequence[str],
        indices: Tensor,
        made_by: str,
        transform: Callable[[Any], Tensor],
    ) -> None:
        self.directory, self.name, self.root, self.files, self.made_by = directory, name, root, files, made_by
        self.indices, self.transform = indices, transform
        self._sorted, self._rows = indices.sort()
        self._array: np.ndarray | None = None
        self._given_up = False

    def is_there(self, decode: Callable[[], Iterable[Tensor]]) -> bool:
        """Whether the samples can be read. If need be they are made, while other processes that want them wait.

        They can't where the disk has no room for them, or they can't be written: a warning says so, once.

        Args:
            decode: gives the samples in order, in batches, uint8 [B, C, H, W].
        """
        if self._array is None and not self._given_up:
            try:
                self._array = self._find_or_make(decode)
            except OSError as error:
                LOG.warning("%s: not kept decoded, but decoded at every pass: %s", self.name, error)
            self._given_up = self._array is None
        return self._array is not None

    def read(self, indices: Tensor) -> Tensor:
        """The samples called so, uint8 [B, C, H, W]. `is_there` was asked before."""
        assert self._array is not None
        rows = self._rows[torch.searchsorted(self._sorted, indices)]
        return torch.from_numpy(self._array[rows.numpy()])

    def path(self) -> Path:
        """The file's. Raises OSError where an image is gone."""
        found = hashlib.sha256(json.dumps([VERSION, self.made_by, str(self.root)]).encode())
        for file in self.files:
            stat = (self.root / file).stat()
            found.update(json.dumps([file, stat.st_size, stat.st_mtime_ns]).encode())
        return self.directory / f"{self.name}-{found.hexdigest()[:16]}.npy"

    def _find_or_make(self, decode: Callable[[], Iterable[Tensor]]) -> np.ndarray | None:
        if not self.files:
            return None
        path, count = self.path(), len(self.files)
        if (array := opened(path, count)) is not None:
            return array
        directories.make_directory(self.directory)
        with _turn(self.directory):
            if (array := opened(path, count)) is None and self._make(path, decode):
                array = opened(path, count)
        return array

    def _make(self, path: Path, decode: Callable[[], Iterable[Tensor]]) -> bool:
        """False where there is no room."""
        batches = iter(decode())
        first = next(batches)
        shape = len(self.files), *first.shape[1:]
        size, free = first[0].numel() * len(self.files), shutil.disk_usage(self.directory).free
        words = f"{self.name}: {len(self.files):,} samples, decoded {size / 1e9:.1f} GB"
        if free < size + SPARE:
            LOG.warning("%s, are decoded at every pass: %s has %.1f GB free", words, self.directory, free / 1e9)
            return False
        LOG.info("%s, once, into %s", words, path)
        with directories.replaced(path) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for batch in itertools.chain([first], batches):
                file.write(batch.contiguous().numpy().data)
        return True


def opened(path: Path, count: int) -> np.ndarray | None:
    """The samples in a file, uint8 [count, C, H, W], read when they are used; None where it is not there or damaged."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except Exception:  # whatever NumPy makes of a damaged header
        return None
    whole = array.flags.c_contiguous and size == array.offset + array.nbytes
    return array if whole and array.dtype == np.uint8 and array.ndim == 4 and len(array) == count else None


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Waits until no other process makes a file there. A file system without locks lets each make its own."""
    descriptor = os.open(directory / directories.LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):  # not by closing alone: the processes that decode have copies
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
