"""CUDA graphs, emulated on a CPU: what a recorded function did to tensors is done again, without its Python.

As on a GPU, nothing is run while it is recorded, what it allocated stays at its address, and what makes the host read a
tensor's values can't be recorded.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpk.networks import replay
from lpk.pooling import eager, evaluate

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
UNDECLARED = {("aten::native_batch_norm", f"running_{name}") for name in ("mean", "var")}  # are written, too


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITING:
            raise RuntimeError(f"called a synchronizing operation, {func._schema.name}")
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    """Keeps each operation with what it was given and gave; `before` has what it changed in place, as it was."""

    def __init__(self):
        super().__init__()
        self.done, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func._schema.name}")
        kwargs = kwargs or {}
        written = [
            value
            for i, argument in enumerate(func._schema.arguments)
            if (func._schema.name, argument.name) in UNDECLARED
            or (argument.alias_info is not None and argument.alias_info.is_write)
            for value in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name))
            if isinstance(value, Tensor)
        ]
        self.before += [(x, x.clone()) for x in written]
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if any(x.untyped_storage().data_ptr() not in given for x in made) or written:
            self.done.append((func, args, kwargs, [] if written and not _returns_more(func) else made))
        return result

    def replay(self):
        with torch.inference_mode():
            for func, args, kwargs, made in self.done:
                again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
                for x, value in zip(made, again, strict=bool(made)):
                    x.copy_(value)


def _returns_more(func):
    return any(returned.alias_info is None for returned in func._schema.returns)


class Emulated(replay.Recorder):
    """A recorder for the CPU. `recorded` counts."""

    recorded = 0

    def record(self, function):
        tape, drawn = _Tape(), self.drawn()
        with tape:
            function()
        self.draw_from(drawn)
        with torch.no_grad():
            for x, value in reversed(tape.before):
                x.copy_(value)
        type(self).recorded += 1
        return tape.replay

    def drawn(self):
        return torch.get_rng_state()

    def draw_from(self, state):
        torch.set_rng_state(state)

    def aside(self):
        return nullcontext()

    @contextmanager
    def without_waiting(self):
        with _Watching():
            yield


def like_a_gpu(monkeypatch):
    """The CPU takes the ways of a GPU; cuDNN's functions are composed of PyTorch's."""
    for module in (eager, evaluate, replay):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(Emulated, "recorded", 0)
    monkeypatch.setattr(evaluate, "Recorder", Emulated)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", _relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", _add_relu)


def _relu(x, weight, bias, stride, padding, dilation, groups):
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()


def _add_relu(x, weight, addend, alpha, bias, stride, padding, dilation, groups):
    return (torch.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * addend).relu()
