"""A model and a ticket's values become a network that exploits its zeros: `sparsify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lpk import choices
from lpk.networks.copies import copied
from lpk.networks.wrappers import is_pruned, plain_copy, unwrapped
from lpk.sparse.compact import PRUNABLE, Remaining, load_sparse
from lpk.sparse.module import Sparse, can_go, empty
from lpk.tickets.pooled import Pooled
from lpk.tickets.ticket import Ticket

FALLBACKS = ("error", "torch")


@torch.inference_mode(False)  # ordinary tensors, whatever mode it is called and evaluated in
@torch.no_grad()
def sparsify(
    model: nn.Module,
    ticket: Ticket | Pooled | Mapping[str, Tensor] | str | Path | None = None,
    *,
    fallback: str = "error",
) -> Sparse:
    """The network as a module that exploits its zeros, on a CPU.

    It computes what the model computes for finite inputs, up to rounding. NaN and infinity reach only what some weight
    that is not zero reads them for: PyTorch's 0 · NaN is NaN.

    A network of which too little is sparse, or on the engine, runs in PyTorch as a whole, where that takes less time by
    a model of costs; print() of what is returned says so, and its `profile` what each step takes.

    Args:
        model: the network; it is copied. Operations that the engine does not know run in PyTorch in between, and so do
            layers that are not float32 or compute something else than their class, as after `layer.forward = ...`.
        ticket: the values: a ticket, a pooled network, a state dict, or the path of a file that `save_sparse`,
            `Sparse.save`, `Pooled.save` or `lpk export` wrote; None: the model's own.
        fallback: "torch" evaluates in PyTorch a network that can't be traced or has forward hooks, and calls with
            tensors that are floating-point but not float32, or not on the CPU; "error" raises NotSupported, a
            ValueError, at the first call, and TypeError for such tensors.

    Raises:
        TypeError: a model that is no torch.nn.Module in Python, or, with fallback="error", has no float32 parameters.
        ValueError: an unknown fallback; a model that is sparse already, or a part of it; lpk.FileDamaged, a
            ValueError: a file of another kind.
        FileNotFoundError: no such file.
        RuntimeError: a ticket of another network.
    """
    choices.check("fallback", fallback, FALLBACKS)
    _check_model(model)
    model = unwrapped(model)
    if ticket is None:
        model, remaining = _copy_of_what_remains(model)
    else:
        state, masks = _values(ticket)
        model = plain_copy(model)
        model.load_state_dict(state)
        remaining = _remaining(model, masks)
    model = model.to("cpu").eval().requires_grad_(False)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    if fallback == "error" and dtypes and torch.float32 not in dtypes.values():
        name, dtype = next(iter(dtypes.items()))
        raise TypeError(f"{name} is {dtype}; the engine computes in float32")
    return Sparse(model, remaining, fallback)


def _check_model(model: object) -> None:
    """That it is an ordinary module, and all of it dense."""
    exported = any(kind.__module__.startswith("torch.export.") for kind in type(model).__mro__)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule) or exported:
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"model is a {kind}; a torch.nn.Module is needed, before torch.jit or torch.export changed it")
    for path, module in model.named_modules():
        if isinstance(module, Sparse):
            name = f"the part {path!r} of the model" if path else "the model"
            raise ValueError(f"{name} is a sparse network already; sparsify takes dense ones")


def _copy_of_what_remains(model: nn.Module) -> tuple[nn.Module, dict[str, Remaining]]:
    """A copy that never holds those pruned weights that can go, which makes the difference for the peak of memory."""
    if is_pruned(model):  # by torch.nn.utils.prune: only a copy shows its parameters
        model = plain_copy(model)
        return model, _remaining(model)
    remaining = _remaining(model)
    weights = [p for name, p in model.named_parameters() if name in remaining and can_go(model, name)]
    return copied(model, empty(weights)), remaining


def _remaining(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> dict[str, Remaining]:
    """What remains of each pruned tensor. masks: None where what is not zero remains, in parameters of two or more
    dimensions that have zeros."""
    if masks is not None:
        state = model.state_dict()
        return {name: Remaining.of(state[name], mask) for name, mask in masks.items()}
    weights = {name: p for name, p in model.named_parameters() if p.dim() >= 2 and p.dtype in PRUNABLE}
    return {name: Remaining.of(p, p != 0) for name, p in weights.items() if bool((p == 0).any())}


def _values(
    ticket: Ticket | Pooled | Mapping[str, Tensor] | str | Path,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The state dict, and the masks where they are known."""
    if isinstance(ticket, str | Path):
        if not Pooled.wrote(ticket):
            return load_sparse(ticket)
        ticket = Pooled.load(ticket)
    if isinstance(ticket, Ticket):
        return ticket.state_dict, ticket.masks
    if isinstance(ticket, Pooled):
        return ticket.state_dict, ticket.masks
    return ticket, None
