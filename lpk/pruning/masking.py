"""Pruned weights stay at exactly zero while somebody trains the network.

Gradients are masked as they arrive, so that momentum and a norm over all gradients never see them; after each step of
any torch.optim optimizer the weights are masked too, for those that move weights without a gradient.

Whose optimizer it is, or when it is made, is not known. PyTorch tells of the steps of all of them by a hook of the
whole process, and iterates over such hooks without a lock. So there is one, which is registered once, stays, and finds
what it masks by parameter: networks may be trained in several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lpk.networks.flat import Layout
from lpk.networks.states import state_names

_masked: dict[int, _Masked] = {}  # by the id of a parameter that is in training, and so is alive
_hook: list[object] = []  # its handle, once it is registered
_hook_lock = threading.Lock()


class _Masked:
    """A parameter that is trained, and where it is pruned."""

    def __init__(self, parameter: nn.Parameter, pruned: Tensor, at_first_step: list[Callable[[], None]]) -> None:
        self.parameter = parameter
        self.pruned = pruned
        self.at_first_step = at_first_step  # what is still to be called; all parameters of a network have one list

    @torch.no_grad()
    def mask_weights(self) -> None:
        self.parameter.masked_fill_(self._pruned(self.parameter), 0.0)

    def has_moved(self) -> bool:
        """Whether a pruned weight is not 0."""
        return bool(self.parameter.detach()[self._pruned(self.parameter)].any())

    def mask_gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        pruned = self._pruned(gradient)
        if gradient.is_sparse:  # an embedding's: some rows, and their values
            gradient = gradient.coalesce()
            gradient.values().masked_fill_(pruned[tuple(gradient.indices())], 0.0)
            parameter.grad = gradient
        else:
            gradient.masked_fill_(pruned, 0.0)

    def _pruned(self, beside: Tensor) -> Tensor:
        if self.pruned.device != beside.device:  # train moved the network
            self.pruned = self.pruned.to(beside.device)
        return self.pruned


@contextmanager
def kept_pruned(
    model: nn.Module, layout: Layout, mask: Tensor, at_first_step: Callable[[], None]
) -> Iterator[Callable[[], bool]]:
    """Keeps the pruned weights of a model at exactly 0 while somebody trains it.

    Args:
        mask: bool [n], which weights remain.
        at_first_step: is called after the first step of an optimizer that has one of the prunable weights.

    Yields a function that sets the pruned weights of the model to 0 and returns whether one was not: after training.
    """
    entries = {entry.name: entry for entry in layout.weights}
    calls = [at_first_step]

    def find() -> list[_Masked]:
        return [
            _Masked(parameter, (~mask[entries[name].span]).view(parameter.shape), calls)
            for parameter, name in state_names(model).items()
            if name in entries
        ]

    def mask_all() -> bool:
        found = find()  # those that are there now
        moved = any([each.has_moved() for each in found])
        for each in found:
            each.mask_weights()
        return moved

    mask_all()
    _register()
    masked = {id(each.parameter): each for each in find()}
    handles = [each.parameter.register_post_accumulate_grad_hook(each.mask_gradient) for each in masked.values()]
    _masked.update(masked)
    try:
        yield mask_all
    finally:
        for key in masked:
            _masked.pop(key, None)
        for handle in handles:
            handle.remove()


def _register() -> None:
    with _hook_lock:
        if not _hook:
            _hook.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    if not _masked:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if each := _masked.get(id(parameter)):
                while each.at_first_step:
                    each.at_first_step.pop()()
                each.mask_weights()
