"""Which files of a folder hold the networks of a run, by round: plain ones, the paper's CIFAR code's, OpenLTH's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")

# What the paper's CIFAR code saves of every round: the epoch of best validation accuracy, and the last one.
BEST = re.compile(r"(\d+)model_SA_best\.pth\.tar")
LAST = re.compile(r"(\d+)checkpoint\.pth\.tar")

# OpenLTH's lottery_HASH/replicate_N/level_M/main/model_epE_itI.pth
REPLICATE = re.compile(r"replicate_(\d+)")
LEVEL = re.compile(r"level_(\d+)")
MODEL = re.compile(r"model_ep(\d+)_it(\d+)\.pth")


class Checkpoint(NamedTuple):
    """A file that holds a network and, where its masks are in another, that file."""

    path: Path
    masks: Path | None = None


def find(path: str | Path) -> list[Checkpoint]:
    """The checkpoints of a file, a folder of files, or a run of the paper's code or of OpenLTH, by round.

    Raises FileNotFoundError where there is none or one of them is missing, ValueError for a folder of several runs.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        return [Checkpoint(path)]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    found = _open_lth(path) or _rounds(path) or _files(path)
    if not found:
        raise FileNotFoundError(
            f"{path} has no checkpoints; {', '.join(SUFFIXES)} files were expected, or OpenLTH's level_0, level_1, …"
        )
    return found


def _files(folder: Path) -> list[Checkpoint]:
    """All files in natural order: 2 before 10. Raises ValueError where their names differ in more than numbers."""
    found = (path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    paths = sorted(found, key=_natural)
    kinds = [re.sub(r"\d+", "0", path.name) for path in paths]
    usual = max(kinds, key=kinds.count, default="")
    for path, kind in zip(paths, kinds, strict=True):
        if kind != usual:
            raise ValueError(
                f"{path} may be no round: its name differs from {paths[kinds.index(usual)].name} in more than numbers. "
                "Move it away, or name the files one by one, dense to sparse"
            )
    return [Checkpoint(path) for path in paths]


def _rounds(folder: Path) -> list[Checkpoint]:
    """A run of the paper's CIFAR code, which picks the best epoch of every round."""
    rounds = _numbered(folder, BEST) or _numbered(folder, LAST)
    return [Checkpoint(path) for path in _without_gaps(rounds)]


def _open_lth(folder: Path) -> list[Checkpoint]:
    """A run of OpenLTH, or one of its replicates: of every level the last step, and the masks it was trained with."""
    replicates = _numbered(folder, REPLICATE)
    if len(replicates) > 1:
        names = ", ".join(path.name for path in replicates.values())
        raise ValueError(f"{folder} has {names}, which are runs of their own: name one of them")
    levels = _without_gaps(_numbered(next(iter(replicates.values()), folder), LEVEL))
    models = [_numbered(level / "main", MODEL) for level in levels]
    end = max((step for steps in models for step in steps), default=(0, 0))
    found = []
    for level, steps in zip(levels, models, strict=True):
        masks = level / "main" / "mask.pth"
        if end not in steps:
            name = "model_ep{}_it{}.pth".format(*end)
            raise FileNotFoundError(f"{level / 'main'} has no {name}, with which training ends on other levels")
        if not masks.exists():
            raise FileNotFoundError(f"{masks} does not exist: it holds the masks of {steps[end].name}")
        found.append(Checkpoint(steps[end], masks))
    return found


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int, ...], Path]:
    """What in the folder has a name like the pattern, by the numbers in it."""
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = [(match, path) for path in paths if (match := pattern.fullmatch(path.name))]
    return dict(sorted((tuple(map(int, match.groups())), path) for match, path in matches))


def _without_gaps(rounds: Mapping[tuple[int, ...], Path]) -> list[Path]:
    for i, ((number,), path) in enumerate(rounds.items()):
        if number != i:
            raise FileNotFoundError(f"{path.with_name(path.name.replace(str(number), str(i), 1))} is missing")
    return list(rounds.values())


def _natural(path: Path) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
