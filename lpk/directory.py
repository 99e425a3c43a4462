"""What stands beside tickets in a directory, of a run or not: pooled networks, results, a report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lpk.distributed import together
from lpk.reporting.results import PLOT, REPORT, RESULTS
from lpk.tickets import files
from lpk.tickets.directories import check_no_links, make_inside
from lpk.tickets.pooled import Pooled

MANIFEST = "manifest.json"  # what makes it a run
POOLS = "pools"  # of experiments
POOLED = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Directory:
    """An open directory. Nothing is written to it but through `lpk.tickets.files`."""

    path: Path

    def pooled_path(self, method: str, round_: int) -> Path:
        return pooled_path(self.path, method, round_)

    def make_pooled_directory(self, method: str) -> None:
        """Once, before the networks of this method are made."""
        make_inside(self.path / "pooled")
        make_inside(self.path / "pooled" / method)

    def pooled(self) -> dict[str, list[Pooled]]:
        """The pooled networks of every method that has any, by round."""
        found = {}
        for directory in _methods(self.path):
            if paths := sorted(path for path in directory.iterdir() if POOLED.fullmatch(path.name)):
                found[directory.name] = [Pooled.load(path) for path in paths]
        return found


def pooled_path(path: Path, method: str, round_: int) -> Path:
    return path / "pooled" / method / f"round-{round_:02d}.safetensors"


@contextmanager
def locked_by_first(path: Path) -> Iterator[None]:
    """Locks a directory for all processes of torchrun that are inside; see `files.locked`."""
    with ExitStack() as held:
        with together() as ranks:
            if ranks.first:
                held.enter_context(files.locked(path))
            ranks.share(None)
        yield


def check_whole(path: Path) -> None:
    """Raises ValueError where a part of a directory is a symbolic link, and would lead elsewhere."""
    parts = (MANIFEST, "tickets", "pooled", POOLS, RESULTS, REPORT, PLOT)
    check_no_links([*(path / part for part in parts), *_methods(path)])


def _methods(path: Path) -> list[Path]:
    """The directories of pooled networks."""
    pooled = path / "pooled"
    return sorted(each for each in pooled.iterdir() if each.is_dir()) if pooled.is_dir() else []
