"""A search step: from two vectors, the pruned interpolation for each of eleven coefficients.

lpk finds all the thresholds in one sweep, then writes each output in one pass: one call does all eleven.
"""

import pytest
import torch

from bench.conftest import COEFFICIENTS
from lpk import ops
from tests import reference


def lpk_search_step(a, b, keep, out):
    pairs = zip(*ops.interpolate_threshold(a, b, COEFFICIENTS, keep), strict=True)
    for alpha, threshold in zip(COEFFICIENTS, pairs, strict=True):
        ops.interpolate_prune(a, b, alpha, keep, threshold=threshold, out=out)


def contestants(a, b, keep):
    """Peers answer one coefficient a call."""
    out = torch.empty_like(a)
    return {
        "lpk": lambda: lpk_search_step(a, b, keep, out),
        "torch.topk": lambda: reference.topk_prune(a, b, 0.3, keep),
        "torch.kthvalue": lambda: reference.kthvalue_prune(a, b, 0.3, keep),
        "numpy.partition": lambda: reference.numpy_partition_prune(a, b, 0.3, keep),
        "copy": lambda: out.copy_(a),
    }


@pytest.mark.parametrize("contestant", ["lpk", "torch.topk", "torch.kthvalue", "numpy.partition", "copy"])
def test_interpolate_prune(measure, case, vectors, contestant):
    if contestant == "numpy.partition" and case.dtype != torch.float32:
        pytest.skip("NumPy has no bfloat16 and computes float16 in software")
    call = contestants(*vectors, case.keep)[contestant]
    size = case.n * case.dtype.itemsize
    measure(
        "interpolate_prune",
        contestant,
        call,
        # Both vectors once for all thresholds; then, for each coefficient, both again and the output.
        moved=2 * size if contestant == "copy" else 3 * size + 2 * size / len(COEFFICIENTS),
        coefficients=len(COEFFICIENTS) if contestant == "lpk" else 1,
    )
