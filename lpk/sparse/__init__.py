"""Sparse networks on a CPU, faster than dense ones because they are sparse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lpk.flat import plain_copy
from lpk.pooled import Pooled
from lpk.sparse.compact import load_sparse, save_sparse
from lpk.sparse.network import Network
from lpk.sparse.plan import NotSupported, Shape
from lpk.tickets import Ticket

__all__ = ["NotSupported", "Sparse", "load_sparse", "save_sparse", "sparsify"]

FALLBACKS = ("error", "torch")


class Sparse(nn.Module):
    """A network that is evaluated without the weights that are zero; `sparsify` makes it.

    Maps float32 inputs [B, ...] on the CPU to what the model returns in evaluation mode, up to rounding; the bits do
    not depend on the number of threads. It has no gradients and no parameters: its values are those the model had.
    """

    def __init__(self, model: nn.Module, fallback: str) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule: train() and to() must not reach it
        self.fallback = fallback
        self._networks: dict[Shape, Network | None] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("the inputs require a gradient, and a sparse network has none: use torch.no_grad()")
        if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
            raise TypeError(f"inputs are {inputs.dtype} on {inputs.device}; float32 on the CPU is needed")
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


def sparsify(
    model: nn.Module, ticket: Ticket | Pooled | Mapping[str, Tensor] | None = None, *, fallback: str = "error"
) -> Sparse:
    """The network as a module that exploits its zeros, on a CPU.

    Args:
        model: the network; it is copied. Operations that the engine does not know run in PyTorch in between.
        ticket: the values: a ticket, a pooled network or a state dict; None: the model's own.
        fallback: "torch" evaluates a network that can't be traced in PyTorch; "error" raises NotSupported, a
            ValueError, at the first call.

    Raises:
        TypeError: parameters that are not float32.
        ValueError: an unknown fallback.
        RuntimeError: a ticket of another network.
    """
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback is {fallback!r}; one of {', '.join(FALLBACKS)} is possible")
    model = plain_copy(model).to("cpu").eval().requires_grad_(False)
    if ticket is not None:
        model.load_state_dict(_state(ticket))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"{name} is {parameter.dtype}; the engine computes in float32")
    return Sparse(model, fallback)


def _state(ticket: Ticket | Pooled | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(ticket, Ticket):
        return ticket.state_dict()
    return ticket.state_dict if isinstance(ticket, Pooled) else ticket
