"""Which weights of a network are prunable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import nn
from torch.nn.utils import parametrize

from lpk.networks.copies import copied
from lpk.networks.states import state_names
from lpk.networks.tracing import heads
from lpk.networks.wrappers import pruned_tensors, unwrapped

Prunable = Callable[[str, nn.Parameter], bool] | Collection[str] | None

NOTABLE = 0.2  # of the parameters: where the default leaves out more, that is said

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # the fourth is in a linear layer
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convolutions(model: nn.Module) -> list[str]:
    """The weights of all convolutions: what the paper's CIFAR experiments prune."""
    model = unwrapped(model)
    names = state_names(model)
    found = [(path, m._parameters.get("weight")) for path, m in model.named_modules() if isinstance(m, CONVOLUTIONS)]
    return [f"{path}.weight".lstrip(".") if w is None else names.get(w, f"{path}.weight") for path, w in found]


def prunable_names(model: nn.Module, prunable: Prunable = None) -> list[str]:
    """The names of the prunable parameters in the state dict, in its order.

    Args:
        prunable: a predicate (name, parameter) -> bool, which gets the names of the state dict; a collection of names,
            those of the state dict or of `named_parameters`, which differ where a wrapper renames what it wraps; or
            None for the weights of convolutions, linear layers and nn.MultiheadAttention, except the linear layers
            whose outputs the model returns, or where torch.fx can't tell them the last one.

    Raises ValueError for a name that the model does not have, for a parameter that its state dict does not hold and,
    where `prunable` is None, for a layer whose weight is computed from other parameters.
    """
    model = unwrapped(model)
    names = state_names(model)
    known = dict(model.named_parameters(remove_duplicate=False)) | {name: p for p, name in names.items()}
    if prunable is None:
        chosen = [*_default(model)]
    elif isinstance(prunable, str):
        raise TypeError(f"prunable is the string {prunable!r}; a predicate or a collection of names is needed")
    elif callable(prunable):
        chosen = [p for name, p in model.named_parameters() if prunable(names.get(p, name), p)]
    else:
        if unknown := sorted(set(prunable) - set(known)):
            raise ValueError(f"{unknown[0]!r} is to be pruned, but the model has no such parameter")
        chosen = [known[name] for name in prunable]
    for parameter in chosen:
        if parameter not in names:
            name = next(name for name, p in known.items() if p is parameter)
            raise ValueError(
                f"{name!r} is to be pruned, but the model's state_dict() does not hold it, and so no ticket could: "
                "name what is to be pruned by `prunable`"
            )
    found = {names[parameter] for parameter in chosen}
    return [name for name in model.state_dict() if name in found]


def left_out(model: nn.Module, chosen: Collection[str]) -> str | None:
    """What to say of the matrices that are trained and not chosen; None where they are few of the parameters."""
    sizes = {name: parameter for parameter, name in state_names(model).items() if parameter.requires_grad}
    matrices = {name: p.numel() for name, p in sizes.items() if p.dim() > 1 and name not in chosen}
    total, left = sum(p.numel() for p in sizes.values()), sum(matrices.values())
    if left <= NOTABLE * total:
        return None
    largest = sorted(matrices, key=lambda name: -matrices[name])
    named = [f"{name} ({matrices[name] / total:.0%})" for name in largest[:3]]
    more = [f"{len(largest) - 3} more"] if len(largest) > 3 else []
    return (
        f"not pruned are {left / total:.0%} of the parameters: {', '.join(named + more)}; to prune them, too, pass "
        "`prunable`: names, or lambda name, parameter: parameter.dim() > 1"
    )


def _default(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of convolutions, linear layers and nn.MultiheadAttention, except the linear layers whose outputs the
    model returns."""
    spared = _heads(model)
    for path, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS) or (isinstance(module, nn.Linear) and module not in spared):
            own = ["weight"]
        elif isinstance(module, nn.MultiheadAttention):
            own = [name for name in ATTENTION if getattr(module, name, None) is not None]
        else:
            continue
        for name in own:
            weight = module._parameters.get(name)
            if weight is None:
                full = f"{path}.{name}".lstrip(".")
                raise ValueError(
                    f"{full!r} is computed from other parameters: {_undo(model, full)}, or name what is to be pruned "
                    "by `prunable`"
                )
            yield weight


def _heads(model: nn.Module) -> list[nn.Module]:
    """The linear layers whose outputs a model returns; the last linear layer where that can't be told."""
    linear: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(linear) < 2:
        return linear
    try:  # a copy, since a forward may write to buffers and lists; it has the parameters themselves
        paths = heads(copied(model, {id(parameter): parameter for parameter in model.parameters()}).eval())
    except Exception:  # whatever a stranger's module raises when it is copied
        paths = []
    modules = dict(model.named_modules(remove_duplicate=False))
    return [modules[path] for path in paths] or linear[-1:]


def _undo(model: nn.Module, name: str) -> str:
    """How a weight that PyTorch computes becomes a parameter again, in words."""
    path, _, parameter = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, parameter):
        return "undo that by torch.nn.utils.parametrize.remove_parametrizations"
    if (module, parameter) in pruned_tensors(model):
        return "undo that by torch.nn.utils.prune.remove"
    return "undo that first (torch.nn.utils.remove_weight_norm, remove_spectral_norm)"
