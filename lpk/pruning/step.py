"""A training step: forward, backward, the optimizer's update. On a GPU it is recorded as a CUDA graph and replayed.

Recorded is what the device is told to do: the batch's gathering and augmentation, the network, the masking of pruned
weights, the update. What Python does besides would be done once and never again, so a network that does something
besides is called in each step.
"""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpk.networks.replay import Recorder, Replayed, is_gpu
from lpk.networks.tracing import global_hooks
from lpk.pruning.masking import masks_of
from lpk.pruning.recipe import Recipe

BACKENDS = ("graph", "torch")
_CLOSE = 0.01  # a replay's update may be off by this much of it: not all of a GPU's kernels give the same bits twice

Batch = Callable[..., tuple[Tensor, Tensor]]


class Step:
    """Trains a network by one batch after the other.

    Args:
        model: as it is trained: on its device, in training mode.
        batch: makes images and labels of what a step is called with.
        momentum: the optimizer's buffers from earlier steps, by the position of their parameter.
        backend: "graph": what can't be replayed is an error; "torch": nothing is replayed; None: what can be.

    Attributes:
        total: the sum of the losses, float32 on the device.
        weight: what the next losses count, see lpk.distributed.Part; another one than 1 in DistributedDataParallel
            alone, where nothing is replayed.

    Raises ValueError, also when called, where backend is "graph" and the step can't be replayed.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, recipe: Recipe, momentum: dict[int, Tensor], backend: str | None
    ) -> None:
        self.model = model
        self.batch = batch
        self.recipe = recipe
        self.backend = backend
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = device = self.parameters[0].device
        self.total = torch.zeros((), dtype=torch.float32, device=device)
        self.weight = 1.0
        on_gpu = is_gpu(device)
        # A graph reads the learning rate from the device. On a CPU a float is PyTorch's usual way.
        self._rate = torch.tensor(recipe.lr, dtype=torch.float32, device=device) if on_gpu else None
        self.optimizer = torch.optim.SGD(
            self.parameters,
            lr=recipe.lr if self._rate is None else self._rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=on_gpu or None,
        )
        for i, parameter in enumerate(self.parameters):
            if i in momentum:
                buffer = torch.empty_like(parameter).copy_(momentum[i])
            elif on_gpu and recipe.momentum:
                buffer = torch.zeros_like(parameter)  # what an empty state amounts to, at its address from the start
            else:
                continue
            self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self._shapes: list[torch.Size] = []
        self._watched = False
        self._fitting = self._circumstances()
        recorder = Recorder(device, "it was asked for" if backend == "torch" else None, required=backend == "graph")
        if recorder.problem is None and (problem := self._problem()):
            recorder.give_up(problem)
        self._replayed = Replayed(self._train, self._state, recorder, same=_close, random=True)

    @property
    def graph_problem(self) -> str | None:
        """Why steps are called and not replayed; None while they are."""
        return self._replayed.recorder.problem

    def fits(self, model: nn.Module, batch: Batch, recipe: Recipe, backend: str | None) -> bool:
        """Whether these would make the same step now; the model's tensors, attributes and masks count, too."""
        same = model is self.model and (batch, recipe, backend) == (self.batch, self.recipe, self.backend)
        return same and _alike(self._fitting, self._circumstances())

    def momentum(self) -> dict[int, Tensor]:
        """The optimizer's buffers by the position of their parameter."""
        state = self.optimizer.state
        found = {i: state[p].get("momentum_buffer") for i, p in enumerate(self.parameters) if p in state}
        return {i: buffer for i, buffer in found.items() if buffer is not None}

    def __call__(self, rate: float, *inputs: Tensor) -> None:
        """One step at a learning rate. The first two are called: one for what a network does once in its life, one to
        be watched. So are those of another size, which an epoch's last one may have."""
        if self._rate is None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        else:
            self._rate.fill_(rate)
        shapes = [x.shape for x in inputs]
        first, self._shapes = not self._shapes, self._shapes or shapes
        if first or self.graph_problem is not None or shapes != self._shapes:
            self._train(*inputs)
        elif not self._watched:
            self._watch(*inputs)
        else:
            self._replayed(*inputs)

    def _train(self, *inputs: Tensor) -> None:
        images, labels = self.batch(*inputs)
        # Once for each step: its copies of the weights are kept as long as it lasts.
        with torch.autocast(self.device.type, torch.bfloat16) if self.recipe.autocast else nullcontext():
            loss = nn.functional.cross_entropy(self.model(images), labels)
        if self.weight != 1.0:
            loss = loss * self.weight
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def _watch(self, *inputs: Tensor) -> None:
        """A step that is called, to see whether Python does in it what a graph can't hold."""
        self._watched = True
        numbers, self._fitting = _random_numbers(), self._circumstances()
        self._replayed(*inputs)
        if numbers != _random_numbers():
            self._replayed.recorder.give_up("the network draws random numbers on the host")
        elif not _alike(self._fitting, self._circumstances()):
            self._replayed.recorder.give_up("the network changes attributes of its modules in a step")

    def _state(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers(), *self.momentum().values(), self.total]

    def _problem(self) -> str | None:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if elsewhere := [x.device for x in tensors if x.device != self.device]:
            return f"the network lies on {self.device} and {elsewhere[0]}"
        if isinstance(self.model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return f"{type(self.model).__name__} runs on several devices"
        return next((f"the network has a hook, {name}" for name in _hooks(self.model)), None)

    def _circumstances(self) -> list[Any]:
        """What a recorded step took for granted: addresses, attributes of modules, and what is pruned."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        found: list[Any] = [masks_of(self.model)]
        found += [(id(x), x.data_ptr(), x.requires_grad) for x in tensors]
        for module in self.model.modules():
            own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "builtins"))]
            for held in (module, *own):
                found += [(name, _plain(value)) for name, value in vars(held).items() if not isinstance(value, Tensor)]
        return found


def _plain(value: Any) -> Any:
    """What an attribute of a module is, as far as that can be told at no cost."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    return (id(value), len(value)) if isinstance(value, list | dict | set) else id(value)


def _alike(before: Sequence[Any], now: Sequence[Any]) -> bool:
    return before[0] is now[0] and before[1:] == now[1:]


def _hooks(model: nn.Module) -> Iterator[str]:
    """The hooks of a network that are neither PyTorch's nor lpk's: they may do something that no graph holds."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    found = [*global_hooks(), *(hook for m in model.modules() for kind in kinds for hook in vars(m)[kind].values())]
    for parameter in model.parameters():
        found += [*(parameter._backward_hooks or {}).values(), *(parameter._post_accumulate_grad_hooks or {}).values()]
    for hook in found:
        if not (getattr(hook, "__module__", None) or type(hook).__module__).startswith(("torch.", "lpk.")):
            yield getattr(hook, "__qualname__", type(hook).__name__)


def _random_numbers() -> tuple[Any, ...]:
    """Where the host's streams of random numbers stand."""
    return random.getstate(), pickle.dumps(np.random.get_state()), _host_generator()


def _host_generator() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


@torch.no_grad()
def _close(before: Sequence[Tensor], expected: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether a replay changed tensors as a call of the same step did."""
    moved = off = 0.0
    for a, b, c in zip(before, expected, now, strict=True):
        if not a.is_floating_point():
            if not torch.equal(b, c):
                return False
            continue
        moved += float((b - a).double().square().sum())
        off += float((c - b).double().square().sum())
    return not math.isfinite(moved) or off <= _CLOSE**2 * moved  # a call that diverged tells nothing
