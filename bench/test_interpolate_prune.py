"""A search step: from two vectors, the pruned interpolation for each of K coefficients, each written to its own memory.

lpk finds all the thresholds in one sweep, then writes all outputs in another; for one coefficient that is
`ops.interpolate_prune`. `lpk.packed` first packs the two vectors, which pays where they are sparse, and then writes one
output after the other.
"""

import torch

from bench import cub_peer, cupy_peers, flashinfer_peer
from lpk import ops
from tests import reference

CONTESTANTS = (
    "lpk",
    "lpk.triton",
    "lpk.packed",
    "torch.topk",
    "torch.kthvalue",
    "numpy.partition",
    "cupy.partition",
    "cub.topk",
    "flashinfer.top_k",
    "copy",
)


def packed_search_step(a, b, alphas, keep, outs):
    packed = ops.pack(a, b)
    thresholds, lasts = ops.interpolate_threshold(packed.a, packed.b, alphas, keep)
    for alpha, threshold, last, out in zip(alphas, thresholds, lasts, outs, strict=True):
        ops.interpolate_prune_packed(packed, alpha, keep, threshold=(threshold, last), out=out)


def moved(contestant, case, a, b):
    """The bytes that must move for a coefficient."""
    shared = 2 / case.coefficients  # both vectors once, for all coefficients
    match contestant:
        case "copy":
            return 2 * case.bytes
        case "lpk.packed":
            # The vectors for packing; packed, for the thresholds. Then, for each coefficient, packed again, the bits
            # that tell where they stand, and the output.
            packed_bytes = int(((a != 0) | (b != 0)).sum()) * a.itemsize
            return case.bytes * (shared + 1) + packed_bytes * (shared + 2) + case.n / 8
        case "lpk" | "lpk.triton":
            # The vectors for the thresholds, and again for all outputs; each output.
            return case.bytes * (2 * shared + 1)
        case _:
            # The vectors for the thresholds; then, for each coefficient, both again and the output.
            return case.bytes * (shared + 3)


def call_of(contestant, a, b, alphas, keep):
    """Peers answer one coefficient a call."""
    match contestant:
        case "lpk" | "lpk.triton" if len(alphas) == 1:
            out = torch.empty_like(a)
            return lambda: ops.interpolate_prune(a, b, alphas[0], keep, out=out)
        case "lpk" | "lpk.triton":
            outs = a.new_empty(len(alphas), len(a))
            return lambda: ops.interpolate_prune_all(a, b, alphas, keep, out=outs)
        case "lpk.packed":
            outs = a.new_empty(len(alphas), len(a))
            return lambda: packed_search_step(a, b, alphas, keep, outs)
        case "torch.topk":
            return lambda: reference.topk_prune(a, b, 0.3, keep)
        case "torch.kthvalue":
            return lambda: reference.kthvalue_prune(a, b, 0.3, keep)
        case "numpy.partition":
            return lambda: reference.numpy_partition_prune(a, b, 0.3, keep)
        case "cupy.partition":
            a, b = cupy_peers.arrays(a, b)
            return lambda: cupy_peers.prune(a, b, 0.3, keep)
        case "cub.topk":
            return lambda: cub_peer.prune(a, b, 0.3, keep)
        case "flashinfer.top_k":
            return lambda: flashinfer_peer.prune(a, b, 0.3, keep)
        case "copy":
            out = torch.empty_like(a)
            return lambda: out.copy_(a)


def test_interpolate_prune(measure, case, contestant, pair):
    measure(
        call_of(contestant, *pair, case.alphas, case.keep),
        moved=moved(contestant, case, *pair),
        answered=case.coefficients if contestant.startswith("lpk") else 1,
    )
