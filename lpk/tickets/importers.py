"""Other people's checkpoints: which files of a folder hold networks, and what in them is a mask.

Read are safetensors, and PyTorch files with weights_only=True: nothing is unpickled that could run code.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from lpk import schema
from lpk.networks.flat import StateDict
from lpk.networks.states import tied
from lpk.tickets import files

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict among other things
ZIP = b"PK\x03\x04"  # what a file of torch.save begins with, older ones excepted
MOST_DICTS, DEEPEST = 10_000, 20  # how many dicts of a file are searched for tensors, and how deep in one another
VIEWS, FREE = 4, 2**20  # so many times the file's bytes, and so many more, may its tensors have: they may share values
PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel and torch.compile
COUNTER = "n_averaged"  # what torch.optim.swa_utils.AveragedModel adds to the entries of its `module`
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


# --- reading them -----------------------------------------------------------------------------------------------------


def load(path: Path, key: str | None = None) -> StateDict:
    """The tensors of a file by name: of a state dict, or of the one in a PyTorch file that holds other things, too.

    Args:
        key: where in a PyTorch file the state dict stands. None: under the keys in KEYS, else the only dict of tensors.

    Raises OSError, or lpk.FileDamaged where it is damaged, holds no state dict, or would have to be unpickled.
    """
    if path.suffix == ".safetensors":
        return files.load_plain_tensors(path)
    content = _unpickled(path)
    try:
        state = _state_dict(content, key)
        check_plain(state)
        _check_views(state, path.stat().st_size)
    except ValueError as error:
        raise files.FileDamaged(f"{path} {error}") from error
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in state.items()}


def _unpickled(path: Path) -> Any:
    """What a PyTorch file holds; nothing is called that could run code."""
    with files.opened(path) as (file, size):
        if file.read(4) == ZIP:
            _check_zip(path, file, size)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever PyTorch raises
            if found := re.search(r"GLOBAL (\S+)", str(error)):
                what = found[1][: schema.LONGEST]
                raise files.FileDamaged(
                    f"{path} holds a {what}, and unpickling it could run code: save a state_dict() instead"
                ) from error
            raise files.FileDamaged(f"{path} is damaged, or no PyTorch file of tensors") from error


def _check_zip(path: Path, file: BinaryIO, size: int) -> None:
    """Raises FileDamaged where a member's checksum is wrong, which PyTorch does not look at, and for archives that
    torch.save does not write: PyTorch also unpacks what is compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            plain = len({member.filename for member in members}) == len(members)
            plain = plain and all(member.compress_type == zipfile.ZIP_STORED for member in members)
            plain = plain and min((member.header_offset for member in members), default=-1) == 0
            if not plain or sum(member.file_size for member in members) > size:
                raise files.FileDamaged(f"{path} is not packed as torch.save does it: its parts are stored once each")
            damaged = archive.testzip()
    except files.FileDamaged:
        raise
    except Exception as error:  # zipfile raises a dozen kinds of them for damaged files
        raise files.FileDamaged(f"{path} is damaged, or no PyTorch file of tensors") from error
    if damaged is not None:
        raise files.FileDamaged(f"{path} was altered: {damaged!r} in it does not match its checksum")


def _state_dict(content: Any, key: str | None) -> StateDict:
    """The one state dict in what a file holds. Raises ValueError, which goes on after the file's name."""
    if key is not None:
        content = _under(content, key)
    for known in KEYS:
        if isinstance(content, Mapping) and any(_state_dicts(content.get(known), (), set())):
            content = content[known]
    found = dict(_state_dicts(content, (), set()))
    if len(found) > 1:
        names = ", ".join(schema.shortened(name) for name in list(found)[:10])
        raise ValueError(f"holds several state dicts: say by `key` which one is meant ({names})")
    if not found:
        raise ValueError(f"holds no state dict: {_keys(content)}")
    return next(iter(found.values()))


def _under(content: Any, key: str) -> Any:
    """What stands under a key, or under keys with dots between them."""
    inner: Any = content
    for part in [key] if isinstance(content, Mapping) and key in content else key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            raise ValueError(f"has nothing under the key {schema.shortened(key)}: {_keys(content)}")
        inner = inner[part]
    return inner


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return f"its keys are {', '.join(schema.shortened(key) for key in list(content)[:20]) or 'none'}"


def _state_dicts(content: Any, where: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, StateDict]]:
    """The dicts of tensors by name in nested dicts, with their keys; but for an optimizer's, whose keys are numbers."""
    if not isinstance(content, Mapping) or id(content) in seen or len(seen) > MOST_DICTS or len(where) > DEEPEST:
        return
    seen.add(id(content))
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield ".".join(where), dict(content)
        return
    for key, value in content.items():
        if isinstance(key, str) and "optim" not in key:
            yield from _state_dicts(value, (*where, key), seen)


def _check_views(state: Mapping[str, Tensor], size: int) -> None:
    """Raises ValueError, which goes on after the file's name, for views that are much larger than the file's `size`
    bytes: one value may stand for any number of equal ones."""
    seen, total = set(), 0
    for tensor in state.values():
        where = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        total += 0 if where in seen else tensor.numel() * tensor.itemsize
        seen.add(where)
    if total > VIEWS * size + FREE:
        raise ValueError(f"holds tensors of {total:,} bytes in {size:,}: save clones of those that share values")


def check_plain(state: Mapping[str, Tensor]) -> None:
    """Raises ValueError, which goes on after a name of the state dict, for other keys than names and other tensors than
    most; what is no tensor at all is left to others."""
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(f"holds a tensor under {schema.shortened(name)}, which is no name")
        if isinstance(tensor, Tensor) and (kind := _kind(tensor)):
            raise ValueError(f"holds {schema.shortened(name)} as a {kind} tensor: a plain dense one is needed")


def _kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    return "meta" if tensor.is_meta else None if tensor.layout == torch.strided else str(tensor.layout)[6:]


def network(state: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Network:
    """A state dict without the prefixes in PREFIXES and without torch.nn.utils.prune's weight_orig/weight_mask pairs,
    whose masks are taken where none are given; also without the counter of torch.optim.swa_utils.AveragedModel."""
    if _is_averaged(state):
        state = {name: tensor for name, tensor in state.items() if _plain(name) != COUNTER}
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


def _is_averaged(state: Mapping[str, Tensor]) -> bool:
    names = [name.removeprefix("_orig_mod.") for name in state]
    return COUNTER in names and all(name.startswith("module.") for name in names if name != COUNTER)


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
