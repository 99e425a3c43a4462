"""Graphs of models by torch.fx, in a process of several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

# torch.fx replaces nn.Module.__call__ while it traces: two traces at once would write into each other's graph.
_one_at_a_time = threading.Lock()


def trace(model: nn.Module) -> fx.GraphModule:
    """What `torch.fx.symbolic_trace` returns, while other threads may trace and call modules, too."""
    with _one_at_a_time:
        return fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)


def hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The forward hooks and pre-hooks in a model: the path of a module, "" for the model itself, and a hook's name.

    A graph has those of the modules that it calls as a whole; the model's own are not in it.
    """
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield path, getattr(hook, "__qualname__", type(hook).__name__)


class _Tracer(fx.Tracer):
    """Lets the calls of other threads through."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
