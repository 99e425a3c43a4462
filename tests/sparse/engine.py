"""The engine's operations on every instruction set and number of threads, and blocks for them."""

import contextlib
import re

import hypothesis
import pytest
import torch
import torch.nn.functional as F

from lpk import _core
from lpk.sparse import kernels
from lpk.sparse.blocks import Blocks, empty_blocks

INSTRUCTION_SETS = _core.instruction_sets()
SLOPE = 0.3
MODULES = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky relu": lambda x: F.leaky_relu(x, SLOPE),
    "elu": lambda x: F.elu(x, SLOPE),
}
arbitrary = hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
generator = torch.Generator()


@contextlib.contextmanager
def configured(instruction_set="auto", threads=None):
    before = torch.get_num_threads()
    try:
        _core.set_instruction_set(instruction_set)
        torch.set_num_threads(threads or before)
        _core.set_least_work(1)  # as if everything were large: all threads work
        yield
    finally:
        _core.set_instruction_set("auto")
        _core.set_least_work(0)
        torch.set_num_threads(before)


def random(*shape):
    return torch.randn(*shape, generator=generator)


def in_blocks(x, border=0):
    return kernels.pack_input(x, empty_blocks(*x.shape, border))


def with_garbage(batch, channels, height, width, border):
    """Blocks for an output: their interior is overwritten, and nothing else."""
    out = empty_blocks(batch, channels, height, width, border)
    interior(out).fill_(float("nan"))
    return out


def interior(x):
    _, _, height, width, _ = x.data.shape
    return x.data[:, :, x.border : height - x.border, x.border : width - x.border]


def border_is_zero(x):
    whole = x.data.clone()
    interior(Blocks(whole, x.batch, x.border)).zero_()
    return bool((whole == 0).all())


def check_close(out, expected, magnitude):
    """`magnitude`: the sum of the absolute values that were added up."""
    assert border_is_zero(out)
    got = kernels.unpack_output(out)
    assert got.shape == expected.shape
    close = (got - expected).abs() <= 1e-5 * magnitude + 1e-30
    assert bool((close | (got == expected)).all())  # equal infinities have no difference


def same_for_all_threads(call, **size):
    """The output of a call that is given where to write, in every instruction set: the same bits on 1 to 3 threads."""
    for instruction_set in INSTRUCTION_SETS:
        outputs = []
        for threads in (1, 2, 3):
            with configured(instruction_set, threads):
                outputs.append(call(with_garbage(**size)))
        assert all(torch.equal(out.data.view(torch.int32), outputs[0].data.view(torch.int32)) for out in outputs)
        yield outputs[0]


def fails(error, *words):
    return pytest.raises(error, match=".*".join(map(re.escape, words)))
