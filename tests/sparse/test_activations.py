"""Activations against PyTorch's in float64."""

import math

import pytest
import torch

from lpk.sparse import kernels
from lpk.sparse.blocks import empty_blocks
from lpk.sparse.kernels import ACTIVATIONS
from tests.sparse.engine import INSTRUCTION_SETS, MODULES, SLOPE, configured, in_blocks

INF, NAN = math.inf, math.nan


def computed(activation, x, slope=SLOPE):
    """Of a vector, on each instruction set; a product with one keeps the sign of zero."""
    blocks, one = in_blocks(x.view(1, 1, 1, -1)), in_blocks(torch.ones(1, 1, 1, 1))
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            out = kernels.multiply(blocks, one, empty_blocks(*blocks.shape), activation=activation, slope=slope)
            yield kernels.unpack_output(out).flatten()


def everywhere():
    """Numbers of every size, near zero and where functions saturate."""
    sizes = torch.logspace(-30, 3, 3000)
    return torch.cat([sizes, -sizes, torch.linspace(-20, 20, 20001), torch.linspace(-105, 105, 5001)])


def test_all_are_tested():
    assert set(MODULES) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", MODULES)
def test_accuracy(activation):
    """Few units in the last place; the Gaussian's tail as far as PyTorch has it."""
    x = everywhere()
    expected = MODULES[activation](x.double())
    near_zero = x.abs() < 1e-3
    for got in computed(activation, x):
        error = (got - expected).abs()
        relative = error / expected.abs().clamp(min=1e-30)
        if activation.startswith("gelu"):
            assert float(error.max()) < 1.1e-6 and float(relative[x > -1].max()) < 1e-6
        else:
            assert float(relative[x > -80].max()) < 6e-7 and float(error.max()) < 1e-4 * SLOPE
        assert float(relative[near_zero].max()) < 6e-7


@pytest.mark.parametrize(
    ("activation", "x", "expected"),
    [
        ("silu", (0.0, -0.0, INF, 1e30, -1e30, 200.0), (0.0, -0.0, INF, 1e30, -0.0, 200.0)),
        ("hardswish", (0.0, INF, -1e30, -3.0, 3.0, 7.1), (0.0, INF, -0.0, -0.0, 3.0, 7.1)),
        ("hardsigmoid", (0.0, INF, -INF, -3.0, 3.0), (0.5, 1.0, 0.0, 0.0, 1.0)),
        ("sigmoid", (0.0, INF, -INF, 1e30, -1e30), (0.5, 1.0, 0.0, 1.0, 0.0)),
        ("tanh", (0.0, -0.0, INF, -INF, 1e30, -10.0), (0.0, -0.0, 1.0, -1.0, 1.0, -1.0)),
        ("gelu", (0.0, -0.0, INF, 1e30, -1e30, 17.3), (0.0, -0.0, INF, 1e30, -0.0, 17.3)),
        ("gelu tanh", (0.0, -0.0, INF, 1e30, -1e30, 17.3), (0.0, -0.0, INF, 1e30, -0.0, 17.3)),
        ("leaky relu", (0.0, -0.0, INF, -INF, 17.3), (0.0, -0.0, INF, -INF, 17.3)),
        ("elu", (0.0, INF, -INF, 17.3, -1e30), (0.0, INF, -SLOPE, 17.3, -SLOPE)),
        ("relu", (-INF, INF), (0.0, INF)),
    ],
)
def test_exact_values(activation, x, expected):
    expected = torch.tensor(expected)
    for got in computed(activation, torch.tensor(x)):
        assert torch.equal(got, expected) and torch.equal(got.signbit(), expected.signbit())


@pytest.mark.parametrize("activation", MODULES)
def test_nan(activation):
    """Whatever its bits are."""
    bits = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, 0x7FD5A5A5], dtype=torch.int32)
    x = torch.cat([torch.ones(3), bits.view(torch.float32)])
    for got in computed(activation, x):
        assert got.isnan().tolist() == [False] * 3 + [True] * 5
