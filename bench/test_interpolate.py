"""α·θ_best + (1 − α)·θ_i alone: two vectors read, one written."""

import torch

from bench import cupy_peers
from lpk import ops
from tests import reference

CONTESTANTS = ("lpk", "lpk.triton", "torch.lerp", "torch weighted sum", "numpy", "cupy", "copy")
ALPHA = 0.3


def call_of(contestant, a, b):
    out = torch.empty_like(a)
    match contestant:
        case "lpk" | "lpk.triton":
            return lambda: ops.interpolate(a, b, ALPHA, out=out)
        case "torch.lerp":
            return lambda: torch.lerp(b, a, ALPHA, out=out)
        case "torch weighted sum":
            return lambda: reference.weighted_sum_interpolate(a, b, ALPHA)
        case "numpy":
            return lambda: reference.numpy_interpolate(a.numpy(), b.numpy(), ALPHA)
        case "cupy":
            a, b = cupy_peers.arrays(a, b)
            return lambda: reference.numpy_interpolate(a, b, ALPHA)
        case "copy":
            return lambda: out.copy_(a)


def test_interpolate(measure, case, contestant, pair):
    measure(call_of(contestant, *pair), moved=case.bytes * (2 if contestant == "copy" else 3))
