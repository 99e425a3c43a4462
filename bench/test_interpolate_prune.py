"""A search step: from two vectors, the pruned interpolation for each of K coefficients.

lpk finds all the thresholds in one sweep, then writes each output in one pass: one call does all of them.
"""

import torch

from bench import cupy_peers
from lpk import ops
from tests import reference

CONTESTANTS = ("lpk", "torch.topk", "torch.kthvalue", "numpy.partition", "cupy.partition", "copy")


def lpk_search_step(a, b, alphas, keep, out):
    thresholds, lasts = ops.interpolate_threshold(a, b, alphas, keep)
    for alpha, threshold, last in zip(alphas, thresholds, lasts, strict=True):
        ops.interpolate_prune(a, b, alpha, keep, threshold=(threshold, last), out=out)


def call_of(contestant, a, b, alphas, keep):
    """Peers answer one coefficient a call."""
    out = torch.empty_like(a)
    match contestant:
        case "lpk":
            return lambda: lpk_search_step(a, b, alphas, keep, out)
        case "torch.topk":
            return lambda: reference.topk_prune(a, b, 0.3, keep)
        case "torch.kthvalue":
            return lambda: reference.kthvalue_prune(a, b, 0.3, keep)
        case "numpy.partition":
            return lambda: reference.numpy_partition_prune(a, b, 0.3, keep)
        case "cupy.partition":
            a, b = cupy_peers.arrays(a, b)
            return lambda: cupy_peers.prune(a, b, 0.3, keep)
        case "copy":
            return lambda: out.copy_(a)


def test_interpolate_prune(measure, case, contestant, pair):
    measure(
        call_of(contestant, *pair, case.alphas, case.keep),
        # Both vectors once for all thresholds; then, for each coefficient, both again and the output.
        moved=case.bytes * (2 if contestant == "copy" else 3 + 2 / case.coefficients),
        answered=case.coefficients if contestant == "lpk" else 1,
    )
