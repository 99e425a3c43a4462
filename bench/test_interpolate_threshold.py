"""The threshold of each of K interpolations: lpk reads the two vectors once for all of them."""

import torch

from bench import cub_peer, cupy_peers, flashinfer_peer
from lpk import ops
from tests import reference

CONTESTANTS = (
    "lpk",
    "lpk.triton",
    "torch.topk",
    "torch.kthvalue",
    "numpy.partition",
    "cupy.partition",
    "cub.topk",
    "flashinfer.top_k",
    "copy",
)


def call_of(contestant, a, b, alphas, keep):
    """Peers answer one coefficient a call."""
    match contestant:
        case "lpk" | "lpk.triton":
            return lambda: ops.interpolate_threshold(a, b, alphas, keep)
        case "torch.topk":
            return lambda: reference.topk_threshold(a, b, 0.3, keep)
        case "torch.kthvalue":
            return lambda: reference.kthvalue_threshold(a, b, 0.3, keep)
        case "numpy.partition":
            return lambda: reference.numpy_partition_threshold(a, b, 0.3, keep)
        case "cupy.partition":
            a, b = cupy_peers.arrays(a, b)
            return lambda: cupy_peers.threshold(a, b, 0.3, keep)
        case "cub.topk":
            return lambda: cub_peer.threshold(a, b, 0.3, keep)
        case "flashinfer.top_k":
            return lambda: flashinfer_peer.threshold(a, b, 0.3, keep)
        case "copy":
            out = torch.empty_like(a)
            return lambda: out.copy_(a)


def test_interpolate_threshold(measure, case, contestant, pair):
    measure(
        call_of(contestant, *pair, case.alphas, case.keep),
        moved=case.bytes * (2 if contestant == "copy" else 2 / case.coefficients),
        answered=case.coefficients if contestant.startswith("lpk") else 1,
    )
