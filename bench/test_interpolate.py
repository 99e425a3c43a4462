"""α·θ_best + (1 − α)·θ_i alone: two vectors read, one written."""

import pytest
import torch

from lpk import ops
from tests import reference

ALPHA = 0.3


def contestants(a, b):
    out = torch.empty_like(a)
    return {
        "lpk": lambda: ops.interpolate(a, b, ALPHA, out=out),
        "torch.lerp": lambda: torch.lerp(b, a, ALPHA, out=out),
        "torch weighted sum": lambda: reference.weighted_sum_interpolate(a, b, ALPHA),
        "numpy": lambda: reference.numpy_interpolate(a.numpy(), b.numpy(), ALPHA),
        "copy": lambda: out.copy_(a),
    }


@pytest.mark.parametrize("contestant", ["lpk", "torch.lerp", "torch weighted sum", "numpy", "copy"])
def test_interpolate(measure, case, vectors, contestant):
    if contestant == "numpy" and case.dtype != torch.float32:
        pytest.skip("NumPy has no bfloat16 and computes float16 in software")
    words = 2 if contestant == "copy" else 3
    call = contestants(*vectors)[contestant]
    measure("interpolate", contestant, call, moved=words * case.n * case.dtype.itemsize)
