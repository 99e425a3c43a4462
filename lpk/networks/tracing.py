"""Graphs of models by torch.fx, in a process of several threads."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.attention import taken_apart
from lpk.networks.known import Known

# Whose code is no model's.
TRACERS = (os.path.dirname(torch.__file__) + os.sep, __file__)

# torch.fx replaces nn.Module.__call__ while it traces: two traces at once would write into each other's graph.
_one_at_a_time = threading.RLock()

if hasattr(os, "register_at_fork"):  # not while one goes on: its thread would not be there to put things back
    os.register_at_fork(
        before=_one_at_a_time.acquire,
        after_in_parent=_one_at_a_time.release,
        after_in_child=_one_at_a_time.release,
    )


@dataclass(frozen=True)
class Arguments:
    """What a model is called with while it is traced: so many inputs, and among them what `fill` makes of them; None:
    the inputs themselves, in their order."""

    count: int
    fill: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None


def trace(
    model: nn.Module,
    arguments: Arguments | None = None,
    *,
    changing: bool = False,
    apart: bool = False,
    examples: Sequence[Tensor] | None = None,
) -> fx.GraphModule:
    """A call of the model, as `torch.fx.symbolic_trace` gives it, while other threads may trace and call modules, too.

    arguments: those that the graph's inputs are part of; None: as many as the model needs, at least one; others have
    their defaults. changing: whether the values of buffers will be others: what is computed from them alone is then
    part of the graph. apart: whether a subclass of BatchNorm and PyTorch's modules of attention are taken apart.
    examples: inputs, which are computed with meanwhile: the model may then decide by shapes, see lpk.networks.known.

    The meta of each node has the `line` of the model's code, as file:number, that made it; None if that is not known.

    Raises ValueError where torch.fx can't trace the model, with the line that it fails at.
    """
    with _one_at_a_time, _attributes_kept(model):
        given = Arguments(max(1, _required(model))) if arguments is None else arguments
        caller = _caller(given.count)(model, given)
        known = None if examples is None else Known(caller, examples)
        try:
            graph = _Tracer(model, changing, apart, known).trace(caller)
        except Exception as error:  # whatever a stranger's forward raises when it is given a proxy
            line = _line(reversed(list(traceback.walk_tb(error.__traceback__))))
            raise ValueError(f"{error} ({line})" if line else str(error)) from error
        return fx.GraphModule(caller, graph, type(model).__name__)


class _Caller(nn.Module):
    """Calls a model, whatever that runs: torch.fx looks only at the class's forward of what it is given itself.

    The names of what is in it are those in the model.
    """

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self._modules[""] = model
        self.__dict__["arguments"] = arguments
        self.training = model.training

    def _call(self, *inputs: Any) -> Any:
        fill = self.__dict__["arguments"].fill
        args, kwargs = (inputs, {}) if fill is None else fill(inputs)
        return self._modules[""](*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_modules"][""], name)


@cache
def _caller(count: int) -> type[_Caller]:
    """One whose forward has so many arguments: torch.fx makes an input of each that its code names."""
    names = ", ".join(["inputs", *(f"inputs_{i}" for i in range(1, count))])
    space: dict[str, Any] = {}
    exec(f"def forward(self, {names}):\n    return self._call({names})", space)
    return type("_Caller", (_Caller,), {"forward": space["forward"]})


def _required(model: nn.Module) -> int:
    """How many arguments have no default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


# What may stand between a linear layer and what is returned, by the names of modules, functions and methods without
# underscores: what reshapes its output, picks from it, or maps it entry by entry.
PASSED = {
    *("identity", "dropout", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("movedim", "contiguous", "clone", "getitem", "chunk", "split", "unbind", "mean", "to", "type", "float", "half"),
    *("double", "bfloat16", "softmax", "logsoftmax", "sigmoid", "logsigmoid", "softplus", "tanh", "relu", "exp"),
}
SUMS = {"add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv"}
JOINED = {"cat", "concat", "stack"}


def heads(model: nn.Module) -> list[str]:
    """The paths of the linear layers whose outputs a model returns.

    Behind one may stand what PASSED names, arithmetic with numbers and parameters, and sums of such outputs alone; they
    may be returned in tuples and dicts. Empty where there is no such layer, or where torch.fx can't trace the model. It
    should be a copy: its forward runs, and may write into buffers.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            graph = trace(model)
    except ValueError:
        return []
    *_, output = graph.graph.nodes
    found = set[str]().union(*(_heads(node, model) for node in output.all_input_nodes))
    return [path for path, _ in model.named_modules() if path in found]


def _heads(node: fx.Node, model: nn.Module) -> set[str]:
    """The linear layers that a node is the output of; empty if it is something else."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return set()
    if node.op == "call_module" and isinstance(module := model.get_submodule(str(node.target)), nn.Linear):
        return {str(node.target)}
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = type(module).__name__ if node.op == "call_module" else name
    name = name.lower().strip("_").replace("_", "")
    inputs = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
    if name == "linear":  # called as a function, by a layer of the user's own
        weights = [str(operand.target) for operand in node.all_input_nodes if operand.op == "get_attr"]
        paths = {weight.rpartition(".")[0] for weight in weights if weight.rpartition(".")[2] == "weight"}
        return {path for path in paths if isinstance(model.get_submodule(path), nn.Linear)}
    if name in PASSED:
        return _heads(inputs[0], model) if inputs else set()
    if name in SUMS or name in JOINED:
        found = [_heads(operand, model) for operand in inputs]
        return set[str]().union(*found) if name in JOINED or all(found) else set()
    return set()


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """What modules keep of their forward is proxies, while it is traced."""
    kept = [
        (held, dict(held))
        for module in model.modules()
        for held in (vars(module), module._buffers, module._parameters)
        if isinstance(held, dict)
    ]
    try:
        yield
    finally:
        for held, content in kept:
            held.clear()
            held.update(content)


def hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The forward hooks and pre-hooks in a model: the path of a module, "" for the model itself, and a hook's name.

    Global ones are the model's own, too. A graph calls those of the modules that it calls as a whole; of the others,
    and of the model itself, it has what they did while it was traced.
    """
    for hook in global_hooks():
        yield "", f"{_hook_name(hook)}, a global one"
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield path, _hook_name(hook)


def global_hooks() -> list[Callable[..., Any]]:
    """What torch.nn.modules.module.register_module_forward_hook registered, and its like before the forward."""
    return [*torch_module._global_forward_pre_hooks.values(), *torch_module._global_forward_hooks.values()]


def _hook_name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


class _Tracer(fx.Tracer):
    """Lets the calls of other threads through. The model itself is no leaf; BatchNorm of any kind is one where `apart`
    is False: who measures its statistics looks for it."""

    def __init__(self, model: nn.Module, changing: bool, apart: bool, known: Known | None) -> None:
        super().__init__()
        self.model = model
        self.known = known
        self.apart = apart
        self.proxy_buffer_attributes = True if apart else changing
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.model:
            return False
        whole = isinstance(m, _BatchNorm) and (not self.apart or type(m).__module__.startswith("torch.nn."))
        return whole or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = _line(traceback.walk_stack(sys._getframe()))
        if self.known is not None:
            self.known.add(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return super().proxy(node) if self.known is None else self.known.proxy(node, self)

    def number(self, proxy: Any) -> Any:
        """What a proxy stands for, where that is no tensor and known."""
        try:
            assert self.known is not None
            return self.known.number(proxy.node)
        except LookupError:
            return super().to_bool(proxy)  # which says why not

    def to_bool(self, obj: Any) -> bool:
        return super().to_bool(obj) if self.known is None else bool(self.number(obj))

    @property
    def _evaluates(self) -> bool:
        return self.known is not None and self.known.evaluating

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread or self._evaluates:
            return forward(*args, **kwargs)
        if self.apart and (made := taken_apart(m, args, kwargs)) is not None:
            return made
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self.thread or self._evaluates:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _line(frames: Iterable[tuple[FrameType, int]]) -> str | None:
    """The innermost line of the model's own code among frames, the innermost of which is first."""
    for frame, number in frames:
        if frame.f_code is trace.__code__:
            return None
        if not frame.f_code.co_filename.startswith(TRACERS):
            return f"{frame.f_code.co_filename}:{number}"
    return None
