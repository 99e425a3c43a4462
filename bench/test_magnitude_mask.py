"""The mask of one round of IMP: the `keep` largest magnitudes of all prunable weights."""

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
    "global_unstructured",
    "copy",
)


def call_of(contestant, x, keep):
    match contestant:
        case "lpk" | "lpk.triton":
            return lambda: ops.magnitude_mask(x, keep)
        case "torch.topk":
            return lambda: reference.topk_mask(x, keep)
        case "torch.kthvalue":
            return lambda: reference.kthvalue_mask(x, keep)
        case "numpy.partition":
            return lambda: reference.numpy_partition_mask(x, keep)
        case "cupy.partition":
            (array,) = cupy_peers.arrays(x)
            return lambda: cupy_peers.mask(array, keep)
        case "cub.topk":
            return lambda: cub_peer.mask(x, keep)
        case "flashinfer.top_k":
            return lambda: flashinfer_peer.mask(x, keep)
        case "global_unstructured":
            layers = x.chunk(20)  # what torch.nn.utils.prune is given: a network of twenty layers
            return lambda: reference.global_unstructured_mask(layers, keep)
        case "copy":
            out = torch.empty_like(x)
            return lambda: out.copy_(x)


def test_magnitude_mask(measure, case, contestant, pair):
    # The vector is read for the threshold and again for the mask, which is one byte an entry.
    moved = 2 * case.bytes if contestant == "copy" else 2 * case.bytes + case.n
    measure(call_of(contestant, pair[0], case.keep), moved=moved)
