"""The module that `sparsify` makes: a network's calls, its memory, and what becomes of it in copies and processes."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lpk import page
from lpk.networks import tracing
from lpk.networks.plain import is_patched
from lpk.ops import memory
from lpk.ops.checks import has_gradient
from lpk.sparse.compact import Remaining, save_sparse
from lpk.sparse.dense import InPyTorch
from lpk.sparse.errors import Fails, NotSupported
from lpk.sparse.inputs import Inputs, problem_of
from lpk.sparse.network import Network
from lpk.sparse.profile import Profile, profile_call, short
from lpk.sparse.steps import Plan

SHAPES = 8  # of inputs, for which a Sparse stays packed: those it was called with last
STEPS = ("step", "way", "density", "million multiply-adds a sample", "if dense")
IN_PYTORCH = 'with fallback="torch", sparsify leaves it to PyTorch'


class Sparse(nn.Module):
    """A network that is evaluated without the weights that are zero; `sparsify` makes it.

    Maps the model's arguments to what that returns in evaluation mode, up to rounding; on the engine the bits do not
    depend on the number of threads. Tensors among the arguments are on the CPU, float32 or of an integer type. The
    first one's first dimension is the batch, and so is that of each other that is as long; all else (the other
    tensors' shapes, numbers, None) is part of a plan, of which each kind of call has its own.

    It has no gradients and no parameters: its values are those the model had. It holds of the pruned weights what
    remains of them, and that packed for the engine once it was called.

    It is always in evaluation mode, float32 and on the CPU: train() changes nothing, to() and half() raise TypeError.
    Under torch.autocast, PyTorch runs the model as it does there. Tensors that the engine does not take (of another
    dtype, or not dense) are a TypeError, or PyTorch's with fallback="torch". state_dict() and load_state_dict() raise
    RuntimeError: `save` writes it, and so does pickle.

    Threads may call it at once: their calls run one after the other, since they share the memory for activations. A
    copy (copy.deepcopy, pickle, a forked process) has its own, which its first call makes. For inputs of another shape
    all is packed anew; what was packed for the eight shapes that came last is kept.
    """

    def __init__(self, model: nn.Module, remaining: Mapping[str, Remaining], fallback: str) -> None:
        """remaining: of each pruned tensor; those that `can_go` may be empty in the model."""
        super().__init__()
        self.train(False)
        self._model = (model,)  # in a tuple, so that it is no submodule: train() and to() must not reach it
        self.fallback = fallback
        self._networks: dict[tuple[Inputs, bool], Network | None] = {}  # also by whether there are global hooks
        self._pytorch: InPyTorch | None = None
        self._lock = threading.Lock()
        _made.add(self)
        state = model.state_dict(keep_vars=True)
        self._remaining = {state[name]: part for name, part in remaining.items()}
        self._gone = {state[name] for name in remaining if can_go(model, name)}
        for tensor in self._gone:
            tensor.data = _nothing(tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for its arguments.

        Raises TypeError for arguments that the model or the engine does not take, RuntimeError for those that require
        a gradient, NotSupported.
        """
        run = self._run
        if torch.compiler.is_dynamo_compiling():  # it would look into the engine
            run = torch.compiler.disable(run)
        return run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(args, fx.Proxy):
            raise TypeError("a sparse network has no graph; trace the model that it was made of")
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):  # a graph calls it as a whole
                path = value.tracer.path_of_module(self)  # type: ignore[attr-defined]
                return value.tracer.create_proxy("call_module", path, args, kwargs)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            raise TypeError(
                "torch.export, torch.onnx and torch.jit can't see into a sparse network; export the model that it was "
                "made of, or see lpk export"
            )
        for x in _tensors(args, kwargs):
            if has_gradient(x):
                raise RuntimeError("the inputs require a gradient, and a sparse network has none: use torch.no_grad()")
        if torch.is_autocast_enabled("cpu"):
            return self._in_pytorch(args, kwargs)
        if (problem := next(filter(None, map(_obstacle, _tensors(args, kwargs))), None)) is None:
            inputs, tensors = Inputs.of(args, kwargs)
            if (inputs, bool(tracing.global_hooks())) not in self._networks:
                problem = problem_of(self._model[0], inputs, args, kwargs)
        if problem is None:
            return self._on_the_engine(inputs, tensors, args, kwargs)
        if self.fallback != "torch":
            raise TypeError(f"{problem}; {IN_PYTORCH}")
        return self._in_pytorch(args, kwargs)

    def _on_the_engine(
        self, kind: Inputs, tensors: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        hooked = bool(tracing.global_hooks())
        with self._lock:
            known = self._networks
            network = known.pop((kind, hooked)) if (kind, hooked) in known else self._network(kind)
            known[kind, hooked] = network
            if len(known) > SHAPES and (oldest := known.pop(next(iter(known)))) is not None:
                oldest.forget()
            given = [x.as_subclass(Tensor) for x in tensors]
            pays = True
            if network is not None:
                try:
                    pays = network.estimate(network.size_of(given)).engine_pays
                    if pays:
                        return network(*given)
                except NotSupported:  # for a batch of this size
                    if self.fallback != "torch":
                        raise
        return self._in_pytorch(args, kwargs) if pays else self._dense()(*args, **kwargs)

    def _dense(self) -> InPyTorch:
        """The network in PyTorch, where that is faster."""
        with self._lock:
            if self._pytorch is None:
                self._restore(self._model[0].parameters())
                self._pytorch = InPyTorch(self._model[0])
            return self._pytorch

    def _in_pytorch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (model,) = self._model
        if self._gone:
            with self._lock:
                self._restore(model.parameters())
        with torch.no_grad():
            return model(*args, **kwargs)

    def profile(self, *args: Any, repetitions: int = 11, **kwargs: Any) -> Profile:
        """How a call with these arguments runs, step by step: print it, or read its rows. Times are medians of so many
        repetitions.

        Raises what a call raises.
        """
        self(*args, **kwargs)
        kind, tensors = Inputs.of(args, kwargs)
        with self._lock:
            network = self._networks.get((kind, bool(tracing.global_hooks())))
            if network is not None and network.estimate(network.size_of(tensors)).engine_pays:
                return network.profile([x.as_subclass(Tensor) for x in tensors], repr(self), repetitions)
        return profile_call(lambda: self(*args, **kwargs), repr(self), repetitions)

    def __repr__(self) -> str:
        lines = [f"Sparse({self._summary()}"]
        for (kind, _), network in self._networks.items():
            lines.append(f"  {kind}: {'in PyTorch' if network is None else network.how()}")
        return "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        """For notebooks: what it was called with, and how each step runs."""
        parts = []
        for (kind, _), network in self._networks.items():
            how, (size, steps) = ("in PyTorch", (0, [])) if network is None else (network.how(), network.work())
            lines = [
                (
                    short(step.name),
                    step.way,
                    "" if step.density is None else f"{page.percent(step.density)}%",
                    f"{step.products / size / 1e6:.3g}" if step.products else "",
                    f"{step.dense / size / 1e6:.3g}" if step.dense else "",
                )
                for step in steps
            ]
            table = page.table(STEPS, lines) if lines else ""
            parts.append(page.element("details", page.element("summary", f"{kind}: {how}"), table))
        return page.element("div", page.element("p", f"Sparse({self._summary()})"), *parts)

    def _summary(self) -> str:
        left = sum(len(part.values) for part in self._remaining.values())
        of = sum(part.n for part in self._remaining.values())
        weights = f"{left / of:.1%} of {of:,} pruned weights left" if of else "not pruned"
        return f"{type(self._model[0]).__name__}: {weights}"

    def save(self, path: str | Path) -> None:
        """Writes the network as `save_sparse` does: `sparsify(model, path)` reads it. Raises OSError."""
        state = self._model[0].state_dict(keep_vars=True)
        with self._lock:
            values = {tensor: self._read(tensor) for tensor in set(state.values())}
        masks = {name: self._remaining[tensor].mask() for name, tensor in state.items() if tensor in self._remaining}
        save_sparse(path, {name: values[tensor] for name, tensor in state.items()}, masks)

    def train(self, mode: bool = True) -> Sparse:
        """Changes nothing: a sparse network is always in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sparse:
        """What to(), half(), cuda() and their like call for each parameter."""
        made = fn(torch.zeros(1, dtype=torch.float32, device="cpu"))
        if made.dtype != torch.float32 or made.device.type != "cpu":
            raise TypeError(
                f"a sparse network is float32 on the CPU and can't become {made.dtype} on {made.device}; convert its "
                "outputs, or the model that it is made of"
            )
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(_no_state_dict(prefix))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        raise RuntimeError(_no_state_dict(prefix))

    def __prepare_scriptable__(self) -> Sparse:
        raise TypeError("torch.jit.script can't compile a sparse network; script the model that it was made of")

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_lock": threading.Lock()})
        _made.add(self)

    def _state(self) -> dict[str, Any]:
        """What a copy gets; to be called under the lock, since calls may change it."""
        return super().__getstate__() | {"_networks": {}, "_pytorch": None, "_lock": None, "_gone": set(self._gone)}

    @torch.inference_mode(False)
    def __deepcopy__(self, memo: dict[int, Any]) -> Sparse:
        made = Sparse.__new__(Sparse)
        with self._lock:
            memo |= empty(self._gone)
            made.__setstate__(copy.deepcopy(self._state(), memo))
        return made

    def _after_fork(self) -> None:
        """In the new process, where a thread that was inside a call is no longer there to end it."""
        self._pytorch = None  # its lock may be another thread's
        if self._lock.locked():
            self._lock, self._networks = threading.Lock(), {}

    def _network(self, inputs: Inputs) -> Network | None:
        model = self._model[0]
        try:
            return Network(model, inputs, dead=False, read=self._read, planned=self._restore_read)
        except NotSupported as error:
            if self.fallback == "torch":
                return None
            if isinstance(error, Fails):
                raise
            raise NotSupported(f"{error}; {IN_PYTORCH}") from error.__cause__

    def _read(self, weight: Tensor) -> Tensor:
        return self._remaining[weight].dense() if weight in self._gone else weight.detach()

    def _restore_read(self, plan: Plan) -> None:
        """What PyTorch reads; a forward that was replaced may read what it likes."""
        for part in plan.in_pytorch:
            self._restore((self._model[0] if any(map(is_patched, part.modules())) else part).parameters())

    def _restore(self, tensors: Iterable[Tensor]) -> None:
        """The values of tensors that PyTorch reads; to be called under the lock."""
        for tensor in tensors:
            if tensor in self._gone:
                tensor.data = self._remaining[tensor].dense()
                self._gone.remove(tensor)


_made: weakref.WeakSet[Sparse] = weakref.WeakSet()


def _after_fork() -> None:
    for made in list(_made):
        made._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _obstacle(x: Tensor) -> str | None:
    """What keeps the engine from reading a tensor, in words."""
    if (x.is_floating_point() and x.dtype != torch.float32) or x.is_complex() or x.device.type != "cpu":
        return f"inputs are {x.dtype} on {x.device}; float32 or an integer type on the CPU is needed"
    problem = memory.obstacle(x, negated=True)
    return None if problem is None else f"inputs are {problem}; a dense tensor with values is needed"


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    fx.node.map_aggregate((args, kwargs), lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found


def _no_state_dict(prefix: str) -> str:
    name = f"the part {prefix[:-1]!r}" if prefix else "the network"
    return f"{name} is sparse and has no state dict: its save() writes a file, which lpk.sparsify(model, file) reads"


def can_go(model: nn.Module, name: str) -> bool:
    """Whether a tensor is the weight of a layer that the engine may pack."""
    module, _, attribute = name.rpartition(".")
    return attribute == "weight" and isinstance(model.get_submodule(module), nn.Conv2d | nn.Linear)


def _nothing(tensor: Tensor) -> Tensor:
    """Zeros of the tensor's shape that take no memory: a network can be traced with them."""
    return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)


def empty(weights: Iterable[Tensor]) -> dict[int, Any]:
    """For copy.deepcopy: instead of these it makes parameters that take no memory."""
    return {id(weight): nn.Parameter(_nothing(weight), requires_grad=False) for weight in weights}
