"""What lpk.imp looks at in a stranger's network and training: before, meanwhile and afterwards.

What can't be kept in a ticket or interpolated is refused before hours of training, or as soon as it can be seen; what
is probably not meant is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpk.networks.flat import Flat, Layout, StateDict
from lpk.networks.states import state_names


class _Kind(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class Precautions:
    """Remembers a network as it was before any training, and says what is wrong with it later.

    Args:
        model: it is tried at once whether its state dict can be loaded into it, as rewinding does.

    Raises ValueError where it can't, or where a parameter is NaN or infinite.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        state = copied_state(model)
        self.kinds = {name: _Kind(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
        self.parameters = set(state_names(model).values())
        try:
            before = layout.flatten(state)
            layout.check_finite(before, self.parameters)
        except ValueError as error:
            raise ValueError(f"before training {error}") from error
        self.before = Flat(before.weights.new_empty(0), before.rest, before.integers)
        load(model, state)

    def check_shapes(self) -> None:
        """Raises ValueError where training changed the shape of a tensor, as observers of quantization do."""
        for name, tensor in self.model.state_dict().items():
            before = self.kinds.get(name)
            if before is not None and isinstance(tensor, Tensor) and tuple(tensor.shape) != before.shape:
                raise ValueError(
                    f"train changed {name!r} from shape {before.shape} to {tuple(tensor.shape)}, but tickets must have "
                    "the same shapes: send a batch through the network before lpk.imp, or make it of that shape"
                )

    def check_entries(self) -> None:
        """Raises ValueError where training made another network of it: other names, shapes or dtypes."""
        state = self.model.state_dict()
        if missing := [name for name in self.kinds if name not in state]:
            raise ValueError(f"train left the network without {missing[0]!r}: undo what it made of it")
        if more := [name for name in state if name not in self.kinds]:
            raise ValueError(f"train gave the network {more[0]!r}, which it had not: let it have that before lpk.imp")
        self.check_shapes()
        for name, before in self.kinds.items():
            if state[name].dtype != before.dtype:
                raise ValueError(
                    f"train changed {name!r} from {before.dtype} to {state[name].dtype}: convert the network before "
                    "lpk.imp or back at the end of train, or use torch.autocast"
                )

    def check_values(self, flat: Flat, first: Flat | None) -> None:
        """Raises ValueError where a trained network can't be interpolated with the ticket of round 0.

        first: that ticket, None where this is it.
        """
        self.layout.check_finite(flat, self.parameters)
        problem = self.layout.contradiction(flat, self.before if first is None else first)
        if problem is None and first is not None and (problem := self.layout.contradiction(first, flat)):
            raise ValueError(f"in round 0 {problem} as now; it must be the same in all rounds")
        if problem is not None:
            earlier = "before training" if first is None else "in round 0"
            raise ValueError(f"{problem} as {earlier}; it must be the same in all rounds")


def copied_state(model: nn.Module) -> StateDict:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of the network. Raises ValueError where hooks, or methods of its own, prevent that."""
    try:
        model.load_state_dict(state)
    except Exception as error:  # whatever a stranger's hooks raise
        raise ValueError(
            f"the network's own state_dict() can't be loaded into it, as each round does: {_one_line(error)}"
        ) from error
    now = model.state_dict()
    if changed := [name for name, tensor in state.items() if not _same(tensor, now[name])]:
        raise ValueError(
            f"{changed[0]!r} is not what was loaded into the network, so that it can't be rewound: look at the hooks "
            "of its state dict"
        )


def trained(model: nn.Module, before: Mapping[nn.Parameter, Tensor]) -> bool:
    """Whether one of the parameters is another than before, or was replaced."""
    now = dict.fromkeys(model.parameters())
    return any(
        parameter not in now or parameter.shape != value.shape or not torch.equal(parameter.detach().to(value), value)
        for parameter, value in before.items()
    )


def emptied(layout: Layout, mask: Tensor, before: Tensor) -> str | None:
    """What is to be said of layers that lose their last weights from one mask to the next; None if none does."""
    density = {
        entry.name: (float(mask[entry.span].float().mean()), bool(before[entry.span].any()))
        for entry in layout.weights
        if entry.shape.numel()
    }
    names = [name for name, (left, any_before) in density.items() if any_before and not left]
    if not names:
        return None
    return (
        f"pruning leaves no weight of {', '.join(map(repr, names))}; densities by layer: "
        f"{', '.join(f'{name} {left:.2%}' for name, (left, _) in density.items())}. `floor=` keeps a share of each"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    b = b.to(a.device)
    return torch.equal(a, b) or (a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
