"""PyTorch's own modules, as its test suite calls them: on the engine, in flat vectors and folded, outputs are theirs.

Every STRIDE-th case; all of them with LPK_MODULE_TESTS=1, of losses every tenth, which differ little.
"""

import copy
import os
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import lpk
from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.pooling.eager import Eager
from tests.networks.random_statistics import with_random_statistics

ALL = os.environ.get("LPK_MODULE_TESTS") == "1"
STRIDE = 1 if ALL else 60
BATCHES = (1, 5, 20)


class Around(nn.Module):
    """A module between two layers that the engine has, or behind features, where it reads other shapes; what else it
    reads is given."""

    def __init__(self, module, x, args, kwargs):
        super().__init__()
        self.module, self.args, self.kwargs, self.shape = module, args, kwargs, x.shape[1:]
        self.before = layer(as_sample(x))
        with torch.no_grad():
            y = self.run(as_sample(x))
        self.after = layer(y) if isinstance(y, torch.Tensor) and y.dtype == torch.float32 else nn.Identity()

    def run(self, x):
        return self.module(self.before(x).reshape(-1, *self.shape), *self.args, **self.kwargs)

    def forward(self, x):
        return self.after(self.run(x))


def layer(x):
    if x.dim() == 4:
        return nn.Conv2d(x.shape[1], x.shape[1], 1)
    return nn.Linear(x.shape[1], x.shape[1]) if x.dim() == 2 else nn.Identity()


def as_sample(x):
    """As the engine has it: images or features."""
    return x if x.dim() in (2, 4) else x.reshape(len(x), -1)


def cases():
    """(name, module, its inputs, other arguments)"""
    pytest.importorskip("expecttest")  # which common_modules needs
    with torch.backends.__allow_nonbracketed_mutation():  # importing it forbids to set flags
        from torch.testing._internal.common_modules import module_db
    number = 0
    for info in module_db:
        for given in info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
        ):
            number += 1
            if (
                number % (10 * STRIDE if ALL and info.name.endswith("Loss") else STRIDE)
                or info.name == "nn.Transformer"
            ):
                continue
            torch.manual_seed(number)
            module = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs).eval()
            forward = given.forward_input
            if forward is None:
                continue
            args, kwargs = list(forward.args), dict(forward.kwargs)
            x = args.pop(0) if args else kwargs.pop("input", None)
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
                try:
                    with torch.no_grad():
                        module(x.clone(), *args, **kwargs)  # lazy ones get their shapes
                except Exception:  # inputs for another dtype
                    continue
                yield f"{info.name} {given.desc} {number}", with_random_statistics(module), x, args, kwargs


def calls():
    """(name, network, batches)"""
    for name, module, x, args, kwargs in cases():
        if not args and not kwargs:
            yield f"{name} alone", module, [x]
        if x.dim() == 0 or x.numel() == 0:
            continue
        try:
            network = Around(copy.deepcopy(module), x, args, kwargs).eval().requires_grad_(False)
        except Exception:  # the layer before it makes no probabilities, or the like
            continue
        sizes = {len(x)} if args else BATCHES
        batches = [as_sample(x)[torch.arange(size) % len(x)] for size in sizes]
        yield f"{name} inside", network, [x for x in batches if possible(network, x)]


def possible(network, x):
    try:
        outputs(network, x)
    except Exception:  # masks and states are for another batch
        return False
    return True


def outputs(call, x):
    torch.manual_seed(0)  # some draw
    with torch.no_grad():
        return call(x.clone())


def same(got, expected):
    (ours, structure), (theirs, expected_structure) = tree_flatten(got), tree_flatten(expected)
    assert structure == expected_structure
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert a == b


@pytest.fixture
def counts():
    found = Counter()
    yield found
    print(dict(found))


def test_on_the_engine(counts):
    wrong = []
    for name, network, batches in calls():
        for fallback in ("error", "torch"):
            made = lpk.sparsify(network, fallback=fallback)
            for x in batches:
                try:
                    outputs(made, x)
                    same(outputs(made, x), outputs(network, x))
                    planned = list(made._networks.values())[-1]
                    counts["in PyTorch" if planned is None else "on the engine"] += 1
                except lpk.sparse.NotSupported as error:
                    if fallback == "torch" or "\n" in str(error):
                        wrong.append((name, fallback, len(x), repr(error)))
                    counts["not supported"] += 1
                except Exception as error:
                    wrong.append((name, fallback, x.shape, repr(error)[:300]))
    assert not wrong, "\n".join(map(str, wrong))


def test_in_flat_vectors_and_folded(counts):
    wrong = []
    for name, network, batches in calls():
        if not batches or not list(network.parameters()):
            continue
        try:
            layout = Layout.of_model(network, prunable=lambda name, parameter: True)
            flat = FlatModel(network, layout, torch.device("cpu"))
            flat.load(layout.flatten(network.state_dict()))
            assert all(torch.equal(flat.model.state_dict()[key], value) for key, value in network.state_dict().items())
            for backend in (flat.model, Eager(flat.model)):
                same(outputs(backend, batches[-1]), outputs(network, batches[-1]))
                counts["equal"] += 1
        except Exception as error:
            wrong.append((name, repr(error)[:300]))
    assert not wrong, "\n".join(map(str, wrong))
