"""What others call the weights of a network, and where their masks are: in state dicts of any origin."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpk.networks.flat import StateDict
from lpk.networks.states import tied

PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel and torch.compile
COUNTER = "n_averaged"  # what torch.optim.swa_utils.AveragedModel adds to the entries of its `module`
NORMALIZE = ("normalize.mean", "normalize.std")  # a first layer that normalises images, which lpk.data does before


class Network(NamedTuple):
    """Weights under their plain names, and a mask for each of those that are pruned."""

    state: StateDict
    masks: StateDict


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
