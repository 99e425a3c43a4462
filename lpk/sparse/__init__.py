"""Sparse networks on a CPU, faster than dense ones because they are sparse."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpk import tracing
from lpk.flat import copied, is_pruned, plain_copy, unwrapped
from lpk.pooled import Pooled
from lpk.sparse.compact import Remaining, load_sparse, save_sparse
from lpk.sparse.network import Network
from lpk.sparse.plan import Fails, NotSupported
from lpk.sparse.steps import Shape
from lpk.tickets import Ticket

__all__ = ["NotSupported", "Sparse", "load_sparse", "save_sparse", "sparsify"]

FALLBACKS = ("error", "torch")
SHAPES = 8  # of inputs, for which a Sparse stays packed: those it was called with last


class Sparse(nn.Module):
    """A network that is evaluated without the weights that are zero; `sparsify` makes it.

    Maps float32 inputs [B, ...] on the CPU to what the model returns in evaluation mode, up to rounding; the bits do
    not depend on the number of threads. It has no gradients and no parameters: its values are those the model had.
    It holds of the pruned weights what remains of them, and that packed for the engine once it was called.

    Threads may call it at once: their calls run one after the other, since they share the memory for activations. A
    copy (copy.deepcopy, pickle) has its own, which its first call makes. For inputs of another shape all is packed
    anew; what was packed for the eight shapes that came last is kept.
    """

    def __init__(self, model: nn.Module, remaining: Mapping[str, Remaining], fallback: str) -> None:
        """remaining: of each pruned tensor; those that `_can_go` may be empty in the model."""
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule: train() and to() must not reach it
        self.fallback = fallback
        self._networks: dict[tuple[Shape, bool], Network | None] = {}  # also by whether there are global hooks
        self._lock = threading.Lock()
        state = model.state_dict(keep_vars=True)
        self._remaining = {state[name]: part for name, part in remaining.items()}
        self._gone = {state[name] for name in remaining if _can_go(model, name)}
        for tensor in self._gone:
            tensor.data = _nothing(tensor)

    def forward(self, inputs: Tensor) -> Any:
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs are of type {type(inputs).__name__}; a tensor is needed")
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("the inputs require a gradient, and a sparse network has none: use torch.no_grad()")
        if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
            raise TypeError(f"inputs are {inputs.dtype} on {inputs.device}; float32 on the CPU is needed")
        shape = tuple(inputs.shape[1:])
        hooked = bool(tracing.global_hooks())
        with self._lock:
            known = self._networks
            network = known.pop((shape, hooked)) if (shape, hooked) in known else self._network(shape)
            known[shape, hooked] = network
            if len(known) > SHAPES and (oldest := known.pop(next(iter(known)))) is not None:
                oldest.forget()
            if network is not None:
                return network(inputs)
        with torch.no_grad():
            return self._model[0](inputs)

    def save(self, path: str | Path) -> None:
        """Writes the network as `save_sparse` does: `sparsify(model, path)` reads it. Raises OSError."""
        state = self._model[0].state_dict(keep_vars=True)
        with self._lock:
            values = {tensor: self._read(tensor) for tensor in set(state.values())}
        masks = {name: self._remaining[tensor].mask() for name, tensor in state.items() if tensor in self._remaining}
        save_sparse(path, {name: values[tensor] for name, tensor in state.items()}, masks)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_networks": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_lock": threading.Lock()})

    @torch.inference_mode(False)
    def __deepcopy__(self, memo: dict[int, Any]) -> Sparse:
        made = Sparse.__new__(Sparse)
        with self._lock:
            memo |= _empty(self._gone)
            made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def _network(self, shape: Shape) -> Network | None:
        model = self._model[0]
        try:
            network = Network(model, shape, dead=False, read=self._read)
        except NotSupported as error:
            if self.fallback == "torch":
                self._restore(model.parameters())
                return None
            if isinstance(error, Fails):
                raise
            raise NotSupported(f'{error}; with fallback="torch", sparsify leaves it to PyTorch') from error.__cause__
        for part in network.plan.in_pytorch:
            self._restore(part.parameters())
        return network

    def _read(self, weight: Tensor) -> Tensor:
        return self._remaining[weight].dense() if weight in self._gone else weight.detach()

    def _restore(self, tensors: Iterable[Tensor]) -> None:
        """The values of tensors that PyTorch reads."""
        for tensor in tensors:
            if tensor in self._gone:
                tensor.data = self._remaining[tensor].dense()
                self._gone.remove(tensor)


@torch.inference_mode(False)  # ordinary tensors, whatever mode it is called and evaluated in
@torch.no_grad()
def sparsify(
    model: nn.Module,
    ticket: Ticket | Pooled | Mapping[str, Tensor] | str | Path | None = None,
    *,
    fallback: str = "error",
) -> Sparse:
    """The network as a module that exploits its zeros, on a CPU.

    Args:
        model: the network; it is copied. Operations that the engine does not know run in PyTorch in between.
        ticket: the values: a ticket, a pooled network, a state dict, or the path of a file that `save_sparse`,
            `Sparse.save`, `Pooled.save` or `lpk export` wrote; None: the model's own.
        fallback: "torch" evaluates in PyTorch a network that can't be traced, has forward hooks, or reads neither
            images [B, C, H, W] nor features [B, F]; "error" raises NotSupported, a ValueError, at the first call.

    Raises:
        TypeError: parameters that are not float32.
        ValueError: an unknown fallback; lpk.files.FileDamaged, a ValueError: a file of another kind.
        FileNotFoundError: no such file.
        RuntimeError: a ticket of another network.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback is {fallback!r}; one of {', '.join(FALLBACKS)} is possible")
    model = unwrapped(model)
    if ticket is None:
        model, remaining = _copy_of_what_remains(model)
    else:
        state, masks = _values(ticket)
        model = plain_copy(model)
        model.load_state_dict(state)
        remaining = _remaining(model, masks)
    model = model.to("cpu").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"{name} is {parameter.dtype}; the engine computes in float32")
    return Sparse(model, remaining, fallback)


def _copy_of_what_remains(model: nn.Module) -> tuple[nn.Module, dict[str, Remaining]]:
    """A copy that never holds those pruned weights that can go, which makes the difference for the peak of memory."""
    if is_pruned(model):  # by torch.nn.utils.prune: only a copy shows its parameters
        model = plain_copy(model)
        return model, _remaining(model)
    remaining = _remaining(model)
    weights = [p for name, p in model.named_parameters() if name in remaining and _can_go(model, name)]
    return copied(model, _empty(weights)), remaining


def _remaining(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> dict[str, Remaining]:
    """What remains of each pruned tensor. masks: None where what is not zero remains, in parameters of two or more
    dimensions that have zeros."""
    if masks is not None:
        state = model.state_dict()
        return {name: Remaining.of(state[name], mask) for name, mask in masks.items()}
    pruned = {name: p for name, p in model.named_parameters() if p.dim() >= 2 and bool((p == 0).any())}
    return {name: Remaining.of(p, p != 0) for name, p in pruned.items()}


def _can_go(model: nn.Module, name: str) -> bool:
    """Whether a tensor is the weight of a layer that the engine may pack."""
    module, _, attribute = name.rpartition(".")
    return attribute == "weight" and isinstance(model.get_submodule(module), nn.Conv2d | nn.Linear)


def _nothing(tensor: Tensor) -> Tensor:
    """Zeros of the tensor's shape that take no memory: a network can be traced with them."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _empty(weights: Iterable[Tensor]) -> dict[int, Any]:
    """For copy.deepcopy: instead of these it makes parameters that take no memory."""
    return {id(weight): nn.Parameter(_nothing(weight), requires_grad=False) for weight in weights}


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
