"""Copies of models that hold what copy.deepcopy refuses: computed tensors, locks, loggers, open files, threads."""

from __future__ import annotations

import copy
import io
import logging
import socket
import tempfile
import threading
import types
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lpk.networks.plain import reads_of_another

Parts = Iterator[tuple[str, Any]]

CONTAINERS = (dict, list, tuple, set, frozenset, deque)

# What is open or runs, and so is one thing that its copy shares: with it any object that holds it.
RUNNING = (io.IOBase, tempfile._TemporaryFileWrapper, socket.socket, threading.Thread, Executor)
SHARED = (
    *RUNNING, logging.Logger, logging.Handler, threading.local, types.ModuleType, types.GeneratorType,
    types.CoroutineType, types.AsyncGeneratorType, torch.Stream, torch.Event,
)  # fmt: skip

LOCK, REENTRANT = type(threading.Lock()), type(threading.RLock())


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """As copy.deepcopy(model, memo), of models that it refuses, too.

    Of tensors that were computed from parameters (the weight of torch.nn.utils.weight_norm, or what a module keeps of
    its last forward) the values are copied, in whatever containers and objects they are. Locks are made anew. Loggers,
    open files, threads, generators and the objects that own them are shared.

    Raises TypeError for anything else that can't be copied, with its attribute's name, and ValueError for a replaced
    forward that would go on reading the original.
    """
    known = dict(memo or {})
    _prepare(model, known, set())
    try:
        made = copy.deepcopy(model, dict(known))
    except Exception as error:  # whatever a stranger's class raises
        path, culprit = _culprit(model, "model", known)
        raise TypeError(
            f"{path} is of type {type(culprit).__name__}, which can't be copied ({error}): lpk works on a copy of the "
            "model; delete the attribute, or give its class a __deepcopy__"
        ) from error
    if name := reads_of_another(made, model):
        raise ValueError(
            f"{name} was replaced by a function that refers to a layer of the model itself, which a copy of the model "
            "would go on reading: bind it to its layer, by types.MethodType(function, layer)"
        )
    return made


def _prepare(value: Any, known: dict[int, Any], seen: set[int]) -> bool:
    """Notes what stands for the parts of a value that can't be copied. Returns whether it is open or runs."""
    if id(value) in seen or id(value) in known:
        return False
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            known[id(value)] = value.detach().clone()
        return False
    if isinstance(value, SHARED) and not isinstance(value, io.BytesIO | io.StringIO):
        known[id(value)] = value
        return isinstance(value, RUNNING)
    if isinstance(value, (LOCK, REENTRANT, threading.Condition)):
        known[id(value)] = _lock(value, known)
        return False
    parts = [part for _, part in _parts(value)]
    runs = [_prepare(part, known, seen) for part in parts]
    owner = not isinstance(value, (nn.Module, *CONTAINERS, types.MethodType, partial))
    if any(runs) and owner and not any(isinstance(part, Tensor) for part in parts):
        known[id(value)] = value
        return True
    return False


def _lock(value: Any, known: dict[int, Any]) -> Any:
    """One that nobody holds; conditions that share a lock still do."""
    if isinstance(value, threading.Condition):
        lock: Any = value._lock  # type: ignore[attr-defined]
        if id(lock) not in known:
            known[id(lock)] = _lock(lock, known)
        return threading.Condition(known[id(lock)])
    return threading.Lock() if isinstance(value, LOCK) else threading.RLock()


def _parts(value: Any) -> Parts:
    """What copy.deepcopy would copy with a value, and how it is reached from there."""
    if isinstance(value, nn.Module):
        for name, held in vars(value).items():
            if name in ("_parameters", "_buffers", "_modules") and isinstance(held, dict):
                yield from ((f".{key}", part) for key, part in held.items())
            else:
                yield f".{name}", held
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r}]", part
            yield f"'s key {key!r}", key
    elif isinstance(value, CONTAINERS):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, partial):
        yield from ((f".{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif not isinstance(value, type | types.FunctionType) and not hasattr(value, "__deepcopy__"):
        slots = (name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name))
        for name in (*getattr(value, "__dict__", {}), *slots):
            yield f".{name}", getattr(value, name)


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _culprit(value: Any, path: str, known: dict[int, Any]) -> tuple[str, Any]:
    """The innermost part of a value that can't be copied, and where it is."""
    known = known | {id(value): value}  # a part may refer to what it is part of
    for name, part in _parts(value):
        if id(part) in known:
            continue
        try:
            copy.deepcopy(part, dict(known))
        except Exception:
            return _culprit(part, path + name, known)
    return path, value
