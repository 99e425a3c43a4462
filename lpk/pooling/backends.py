"""What computes a network's output and its BatchNorm statistics: PyTorch, or lpk's engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpk.networks import mixing
from lpk.networks.folding import alike
from lpk.networks.replay import Recorder
from lpk.pooling.eager import Eager
from lpk.sparse.errors import NotSupported
from lpk.sparse.network import Network

Backend = Eager | Network


def choose(
    model: nn.Module, wanted: str, inputs: Tensor, autocast: torch.dtype | None, recorder: Recorder | None = None
) -> Backend:
    """The backend of this name for these inputs [B, ...].

    "auto" is the engine where it can run all of the network, and computes the same.

    Raises ValueError where "sparse" is wanted and impossible.
    """
    eager = Eager(model, autocast, recorder)
    if wanted in ("torch", "graph"):
        return eager
    try:
        if problem := _obstacle(model, inputs, autocast):
            raise NotSupported(problem)
        network = Network(model, tuple(inputs.shape[1:]))
        if wanted == "auto" and not network.whole:
            return eager
        if not alike(network(inputs), eager(inputs)):
            raise NotSupported("the engine does not compute what PyTorch computes")
    except NotSupported as error:
        if wanted == "sparse":
            raise ValueError(f"backend is 'sparse', which is not possible here: {error}") from error
        return eager
    return network


def mixes(backend: Backend, inputs: Tensor) -> bool:
    """Whether what a backend computes for a sample depends on the others of its batch."""
    return backend.mixes if isinstance(backend, Network) else mixing.mixes(backend.plainly, backend.model, inputs)


def _obstacle(model: nn.Module, inputs: Tensor, autocast: torch.dtype | None) -> str | None:
    """Why the engine can't run a model; None if nothing is known against it."""
    if autocast is not None:
        return "it has no autocast"
    if not inputs.is_floating_point():
        return f"inputs are {inputs.dtype}"
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return f"{name} is {parameter.dtype} on {parameter.device}, not float32 on the CPU"
    return None
