import copy
import functools
import io
import logging
import queue
import sys
import tempfile
import threading
import types
from collections import deque, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import lpk
from lpk.networks.copies import copied
from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.networks.wrappers import plain_copy

Pair = namedtuple("Pair", "first second")


@dataclass
class Kept:
    """What a module may keep of its last forward."""

    value: object
    more: dict = field(default_factory=dict)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


HOLDERS = {
    "a tensor": lambda t: t,
    "dict of tuples": lambda t: {"a": (t, 1), "b": (t * 2, 2)},
    "list of dicts": lambda t: [{"a": t}, {"a": [t, {"b": {1: t}}]}],
    "named tuple": lambda t: Pair(t, {"x": Pair(1, t)}),
    "deque and set": lambda t: (deque([t, t]), {t}),
    "dataclass": lambda t: Kept(t, {"a": [t]}),
    "slots": lambda t: [Slotted(Slotted(t))],
    "plain object": lambda t: types.SimpleNamespace(a=types.SimpleNamespace(b=(t,))),
    "keys": lambda t: {t: 1},
    "partial": lambda t: functools.partial(torch.add, t, alpha=2),
    "module in a list": lambda t: [Kept(hooked(t))],
}


def hooked(tensor):
    module = nn.Identity()
    module.last = {"output": (tensor,)}
    return module


@pytest.mark.parametrize("name", HOLDERS)
def test_computed_tensors_are_copied_wherever_they_are(name):
    model, x = network(), torch.randn(5, 3)
    model[0].kept = HOLDERS[name](model(x))
    for other in (copied(model), plain_copy(model), lpk.sparsify(model, fallback="torch")._model[0]):
        torch.testing.assert_close(other(x), model(x))
        assert type(other[0].kept) is type(model[0].kept)
    model(x).sum().backward()  # the original still trains


def test_one_tensor_in_two_places_stays_one():
    model = network()
    model.a = {"x": (tensor := model(torch.randn(5, 3)),)}
    model.b = [tensor]
    other = copied(model)
    assert other.b[0] is other.a["x"][0] is not tensor and torch.equal(other.b[0], tensor)


class Writer:
    """An object with a thread of its own, as loggers of training curves have."""

    def __init__(self, path):
        self.queue, self.file = queue.Queue(), open(path, "w")  # noqa: SIM115
        self.thread = threading.Thread(target=lambda: None)


def test_what_carries_no_values_is_shared_or_made_anew(tmp_path):
    model = network()
    model.lock, model.again = threading.Lock(), threading.RLock()
    model[1].guards = [{"lock": model.lock, "event": threading.Event(), "semaphore": threading.Semaphore(2)}]
    model.queue = queue.Queue()
    model.queue.put("x")
    model.logger, model.adapter = logging.Logger("own"), logging.LoggerAdapter(logging.getLogger("lpk"))
    model.handler, model.out, model.module = logging.StreamHandler(), sys.stdout, types
    model.writer, model.numbers = Writer(tmp_path / "log"), (i for i in range(3))
    model.temporary, model.buffer = tempfile.NamedTemporaryFile(dir=tmp_path), io.BytesIO(b"abc")  # noqa: SIM115
    model.generator, model.local = torch.Generator().manual_seed(3), threading.local()
    with model.lock, model.again:
        other = copied(model)
    with other.lock, other.again, other[1].guards[0]["semaphore"]:  # nobody holds them
        assert other[1].guards[0]["lock"] is other.lock is not model.lock
        assert other.queue.get(timeout=1) == "x" and model.queue.qsize() == 1
        other.queue.put("y", timeout=1)
    for name in ("logger", "handler", "out", "module", "writer", "numbers", "temporary", "local"):
        assert getattr(other, name) is getattr(model, name), name
    assert other.adapter.logger is model.adapter.logger
    assert other.buffer is not model.buffer and other.buffer.getvalue() == b"abc"
    assert torch.equal(torch.randn(3, generator=other.generator), torch.randn(3, generator=model.generator))
    layout = Layout.of_model(model)
    flat = FlatModel(model, layout, torch.device("cpu"))
    flat.load(layout.flatten(model.state_dict()))
    assert torch.equal(flat.model(torch.ones(1, 3)), model(torch.ones(1, 3)))


class Uncopyable:
    def __reduce__(self):
        raise TypeError("it is one of a kind")


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (lambda model, value: setattr(model, "handle", value), r"model\.handle"),
        (
            lambda model, value: setattr(model[1], "x", [{"a": (1, value)}]),
            r"model\.1\.x\[0\]\['a'\]\[1\]",
        ),
        (lambda model, value: setattr(model[0], "x", Kept(Kept(value))), r"model\.0\.x\.value\.value"),
    ],
)
def test_what_cannot_be_copied_is_named(place, path):
    model = network()
    model[0].parent = [model]
    place(model, Uncopyable())
    with pytest.raises(
        TypeError,
        match=rf"{path} is of type Uncopyable, which can't be copied \(it is one of a kind\): ",
    ):
        copied(model)
    with pytest.raises(TypeError, match=path):
        lpk.sparsify(model)


def test_copies_are_what_deepcopy_makes():
    model = network()
    model.first, model.forward_of = [model[0]], model[1].forward
    ours, theirs = copied(model), copy.deepcopy(model)
    assert ours.first[0] is ours[0] and ours.forward_of.__self__ is ours[1]
    assert vars(ours).keys() == vars(theirs).keys()
