"""Sparse networks on a CPU, faster than dense ones because they are sparse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lpk.flat import StateDict, plain_copy
from lpk.pooled import Pooled
from lpk.sparse.compact import Remaining, load_sparse, save_sparse
from lpk.sparse.network import Network
from lpk.sparse.plan import NotSupported, Shape
from lpk.tickets import Ticket

__all__ = ["NotSupported", "Sparse", "load_sparse", "save_sparse", "sparsify"]

FALLBACKS = ("error", "torch")


class Sparse(nn.Module):
    """A network that is evaluated without the weights that are zero; `sparsify` makes it.

    Maps float32 inputs [B, ...] on the CPU to what the model returns in evaluation mode, up to rounding; the bits do
    not depend on the number of threads. It has no gradients and no parameters: its values are those the model had.
    Once it was called, it holds of the pruned weights what remains of them, and that packed for the engine.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], fallback: str) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule: train() and to() must not reach it
        self.fallback = fallback
        self._networks: dict[Shape, Network | None] = {}
        self._seen: set[tuple[int, ...]] = set()  # the shapes of inputs that filters are packed for
        state = model.state_dict(keep_vars=True)
        self._pruned = {name: (state[name], Remaining.of(state[name], mask)) for name, mask in masks.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("the inputs require a gradient, and a sparse network has none: use torch.no_grad()")
        if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
            raise TypeError(f"inputs are {inputs.dtype} on {inputs.device}; float32 on the CPU is needed")
        if inputs.shape in self._seen:
            return self._compute(inputs)
        with self._dense():
            output = self._compute(inputs)
        self._seen.add(inputs.shape)
        return output

    def save(self, path: str | Path) -> None:
        """Writes the network as `save_sparse` does: `sparsify(model, path)` reads it. Raises OSError."""
        masks = {name: remaining.mask() for name, (_, remaining) in self._pruned.items()}
        with self._dense():
            save_sparse(path, self._model[0].state_dict(), masks)

    def _compute(self, inputs: Tensor) -> Tensor:
        shape = tuple(inputs.shape[1:])
        if shape not in self._networks:
            self._networks[shape] = self._network(shape)
        network = self._networks[shape]
        if network is not None:
            return network(inputs)
        with torch.inference_mode():
            output: Tensor = self._model[0](inputs)
        return output.clone()

    def _network(self, shape: Shape) -> Network | None:
        try:
            return Network(self._model[0], shape, dead=False)
        except NotSupported:
            if self.fallback == "torch":
                return None
            raise

    @contextmanager
    def _dense(self) -> Iterator[None]:
        """Within it the pruned weights are there in full, as tracing and packing need them; then the engine's go."""
        for tensor, remaining in self._pruned.values():
            if tensor.shape != remaining.shape:
                tensor.data = remaining.dense()
        try:
            yield
        finally:
            packed = self._packed()
            for tensor, _ in self._pruned.values():
                if id(tensor) in packed:
                    tensor.data = torch.empty(0)

    def _packed(self) -> set[int]:
        """The ids of the weights that are read only while they are packed."""
        plans = [network.plan for network in self._networks.values() if network is not None]
        if len(plans) < len(self._networks):
            return set()  # PyTorch evaluates the whole model
        packed = {id(weight) for plan in plans for weight in plan.packed}
        return packed - {id(tensor) for plan in plans for tensor in plan.foreign}


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
            `Sparse.save` or `lpk export` wrote; None: the model's own.
        fallback: "torch" evaluates a network that can't be traced in PyTorch; "error" raises NotSupported, a
            ValueError, at the first call.

    Raises:
        TypeError: parameters that are not float32.
        ValueError: an unknown fallback; lpk.files.FileDamaged, a ValueError: a file that is no sparse network.
        FileNotFoundError: no such file.
        RuntimeError: a ticket of another network.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback is {fallback!r}; one of {', '.join(FALLBACKS)} is possible")
    model = plain_copy(model).to("cpu").eval().requires_grad_(False)
    masks: Mapping[str, Tensor] | None = None
    if ticket is not None:
        state, masks = _values(ticket)
        model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"{name} is {parameter.dtype}; the engine computes in float32")
    return Sparse(model, _masks_from_zeros(model) if masks is None else masks, fallback)


def _values(
    ticket: Ticket | Pooled | Mapping[str, Tensor] | str | Path,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The state dict, and the masks where they are known."""
    if isinstance(ticket, str | Path):
        return load_sparse(ticket)
    if isinstance(ticket, Ticket):
        return ticket.state_dict(), ticket.masks()
    if isinstance(ticket, Pooled):
        return ticket.state_dict, ticket.masks
    return ticket, None


def _masks_from_zeros(model: nn.Module) -> StateDict:
    """What is not zero remains, in parameters of two or more dimensions that have zeros."""
    return {name: p != 0 for name, p in model.named_parameters() if p.dim() >= 2 and bool((p == 0).any())}
