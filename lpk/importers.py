"""Other people's checkpoints: which files of a folder hold networks, and what in them is a mask.

Read are safetensors, and PyTorch files with weights_only=True: nothing is unpickled that could run code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lpk import files
from lpk.flat import StateDict, tied

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict among other things
PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel and torch.compile
NORMALIZE = ("normalize.mean", "normalize.std")  # a first layer that normalises images, which lpk.data does before

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


class Network(NamedTuple):
    """Weights under their plain names, and a mask for each of those that are pruned."""

    state: StateDict
    masks: StateDict


# --- which files ------------------------------------------------------------------------------------------------------


def find(path: str | Path) -> list[Checkpoint]:
    """The checkpoints of a file, a folder of files, or a run of the paper's code or of OpenLTH, by round.

    Raises FileNotFoundError where there is none or one of them is missing, ValueError for a folder of several runs.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [Checkpoint(path)]
    if not path.is_dir():
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


# --- reading them -----------------------------------------------------------------------------------------------------


def load(path: Path) -> StateDict:
    """The tensors of a file by name: of a state dict, or of one under the keys in KEYS.

    Raises OSError, or lpk.files.FileDamaged where it is damaged, holds no state dict, or would have to be unpickled.
    """
    path.open("rb").close()  # safetensors says of a missing permission, too, that there is no such file
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise files.FileDamaged(f"{path} is damaged or not a safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise files.FileDamaged(
                f"{path} holds a {found[1]}, and unpickling it could run code: save a state_dict() instead"
            ) from error
        raise files.FileDamaged(f"{path} is damaged, or no PyTorch file of tensors") from error
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise files.FileDamaged(f"{path} holds no state dict, neither by itself nor under {', '.join(KEYS)}")
    return dict(content)


def network(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Network:
    """A state dict without the prefixes in PREFIXES and without torch.nn.utils.prune's weight_orig/weight_mask pairs,
    whose masks are taken where none are given."""
    state = {_plain(name): tensor for name, tensor in state.items()}
    pruned = {n.removesuffix("_mask"): t for n, t in state.items() if n.endswith("_mask") and f"{n[:-5]}_orig" in state}
    weights = {}
    for name, tensor in state.items():
        if name.endswith("_orig") and name.removesuffix("_orig") in pruned:
            name = name.removesuffix("_orig")
        elif name.endswith("_mask") and name.removesuffix("_mask") in pruned:
            continue
        weights[name] = tensor
    return Network(weights, pruned if masks is None else {_plain(name): mask for name, mask in masks.items()})


def named_as(own: StateDict, found: Network) -> Network:
    """The network under the names of a model and in their order; unchanged where it has others.

    A prefix `model.` is dropped, and so is a layer `normalize` that the model does not have. Tied are the names that
    the model ties. Raises ValueError where their values differ.
    """
    for prefix in ("", "model."):
        renamed = ({name.removeprefix(prefix): tensor for name, tensor in tensors.items()} for tensors in found)
        state, masks = ({n: t for n, t in r.items() if n in own or n not in NORMALIZE} for r in renamed)
        state = tie(state, tied(own))
        if state.keys() == own.keys():
            return Network({name: state[name] for name in own}, masks)
    return found


def tie(tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> StateDict:
    """The tensors with one of them under all names that are tied; files may hold it under any one or under several.

    Raises ValueError where those differ.
    """
    result = dict(tensors)
    for alias, name in ties.items():
        if alias in result:
            result.setdefault(name, result[alias])
    for alias, name in ties.items():
        if name in result:
            if alias in result and not torch.equal(result[alias], result[name]):
                raise ValueError(f"{name!r} and {alias!r} are one tensor in the network, but differ here")
            result[alias] = result[name]
    return result


def masks_from_zeros(
    states: Sequence[StateDict], *, model: nn.Module | None = None, prunable: Collection[str] | None = None
) -> list[StateDict]:
    """Masks of the prunable tensors, zeros being what is pruned.

    Where they are not named, the floating-point tensors of two or more dimensions that have a zero in some state dict.
    The model tells what is zero for another reason: its buffers, and the rows of embeddings at their padding_idx.
    """
    if prunable is None:
        ties = tied(states[0])
        buffers = set() if model is None else {name for name, _ in model.named_buffers(remove_duplicate=False)}
        padding = {} if model is None else {ties.get(name, name): row for name, row in _padding(model)}

        def seems_pruned(name: str, tensor: Tensor) -> bool:
            if not tensor.is_floating_point() or tensor.dim() < 2 or name in buffers or name in ties:
                return False
            zeros = tensor == 0
            if name in padding:
                zeros[padding[name] : padding[name] + 1] = False
            return bool(zeros.any())

        prunable = {name for state in states for name, tensor in state.items() if seems_pruned(name, tensor)}
    return [{name: state[name] != 0 for name in prunable if name in state} for state in states]


def _padding(model: nn.Module) -> Iterator[tuple[str, int]]:
    """The embeddings whose row at padding_idx stays zero, and that row."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            yield f"{path}.weight".lstrip("."), module.padding_idx


def _plain(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
