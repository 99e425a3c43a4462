"""The threshold of each of eleven interpolations: lpk reads the two vectors once for all of them."""

import pytest
import torch

from bench.conftest import COEFFICIENTS
from lpk import ops
from tests import reference


def contestants(a, b, keep):
    """Peers answer one coefficient a call."""
    out = torch.empty_like(a)
    return {
        "lpk": lambda: ops.interpolate_threshold(a, b, COEFFICIENTS, keep),
        "torch.topk": lambda: reference.topk_threshold(a, b, 0.3, keep),
        "torch.kthvalue": lambda: reference.kthvalue_threshold(a, b, 0.3, keep),
        "numpy.partition": lambda: reference.numpy_partition_threshold(a, b, 0.3, keep),
        "copy": lambda: out.copy_(a),
    }


@pytest.mark.parametrize("contestant", ["lpk", "torch.topk", "torch.kthvalue", "numpy.partition", "copy"])
def test_interpolate_threshold(measure, case, vectors, contestant):
    if contestant == "numpy.partition" and case.dtype != torch.float32:
        pytest.skip("NumPy has no bfloat16 and computes float16 in software")
    call = contestants(*vectors, case.keep)[contestant]
    size = case.n * case.dtype.itemsize
    measure(
        "interpolate_threshold",
        contestant,
        call,
        moved=2 * size if contestant == "copy" else 2 * size / len(COEFFICIENTS),
        coefficients=len(COEFFICIENTS) if contestant == "lpk" else 1,
    )
