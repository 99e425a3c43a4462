"""The arithmetic of lpk.ops once more, in plain NumPy, and the peers that lpk is measured against.

The first half is the definition of what every kernel must return, bit for bit; it is written to be read,
not to be fast, and shares no code with the kernels. The second half is what a user would write without lpk;
tests check that it answers the same question, benchmarks time it.
"""

import numpy as np
import torch
from torch.nn.utils import prune

# --- The definition ---


def fused_multiply_add(x, y, z):
    """x·y + z of float32 arrays, rounded once to float32 (ties to even), as the fma instruction does."""
    x, y, z = (np.asarray(v, np.float32).astype(np.float64) for v in (x, y, z))
    with np.errstate(all="ignore"):
        product = x * y  # exact: 24 + 24 bits fit into 53, and the exponents are far from float64's limits
        total = product + z
        # Knuth's two-sum: `total + error` is the exact sum.
        virtual = total - product
        error = (product - (total - virtual)) + (z - virtual)
        # An inexact sum is rounded to odd: its last bit then says "not exact", and as float64 has bits to
        # spare, the second rounding (to float32, denormal or not) rounds the exact sum correctly.
        even = np.bitwise_and(total.view(np.int64), 1) == 0
        total = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
        return total.astype(np.float32)


def widen(x):
    """A 1-D tensor of any of the three dtypes as a float32 array; exact."""
    if x.dtype == torch.bfloat16:
        return (x.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x.numpy().astype(np.float32)


def narrow(x, dtype):
    """A float32 array rounded to a tensor of `dtype`, ties to even."""
    if dtype == torch.float32:
        return torch.from_numpy(x.copy())
    if dtype == torch.float16:
        with np.errstate(all="ignore"):
            return torch.from_numpy(x.astype(np.float16))
    # bfloat16 is the upper half of a float32: add just under half a unit, and one if the last bit is odd.
    pattern = x.view(np.uint32)
    rounded = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
    return torch.from_numpy(rounded.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def interpolate(a, b, alpha):
    """fma(α, a, β·b) in float32, rounded to the tensors' dtype."""
    alpha = np.float32(alpha)
    beta = np.float32(1) - alpha
    with np.errstate(under="ignore"):
        return narrow(fused_multiply_add(alpha, widen(a), beta * widen(b)), a.dtype)


def ranking(x):
    """The indices of x by falling magnitude; of equal magnitudes the lower index first."""
    return np.argsort(-np.abs(widen(x)), kind="stable")


def magnitude_mask(x, keep, ranked=None):
    """True at the `keep` largest magnitudes. `ranked`: ranking(x), where the caller has it already."""
    ranked = ranking(x) if ranked is None else ranked
    mask = np.zeros(len(ranked), bool)
    mask[ranked[:keep]] = True
    return torch.from_numpy(mask)


def magnitude_prune(x, keep, ranked=None):
    """x where it survives, +0 elsewhere."""
    return torch.where(magnitude_mask(x, keep, ranked), x, torch.zeros((), dtype=x.dtype))


def magnitude_threshold(x, keep, ranked=None):
    """The keep-th largest magnitude, and where the last survivor of that magnitude stands."""
    if keep == 0:
        return float("inf"), -1
    last = int((ranking(x) if ranked is None else ranked)[keep - 1])
    return float(abs(widen(x)[last])), last


def interpolate_prune(a, b, alpha, keep):
    return magnitude_prune(interpolate(a, b, alpha), keep)


def interpolate_threshold(a, b, alphas, keep):
    pairs = [magnitude_threshold(interpolate(a, b, alpha), keep) for alpha in alphas]
    return (
        torch.tensor([t for t, _ in pairs], dtype=torch.float32),
        torch.tensor([j for _, j in pairs], dtype=torch.int64),
    )


def bits(x):
    """A tensor's bit patterns, so that -0 differs from +0 and comparisons are exact."""
    return x.view({torch.float32: torch.int32}.get(x.dtype, torch.int16))


# --- The peers: what one writes without lpk, each the best composition we know of in its library ---
# They need 0 < keep, and those that compare with a threshold keep too many entries where magnitudes tie.


def lerp_interpolate(a, b, alpha):
    return torch.lerp(b, a, alpha)


def weighted_sum_interpolate(a, b, alpha):
    """How published code averages state dicts."""
    return alpha * a + (1 - alpha) * b


def numpy_interpolate(a, b, alpha):
    x = np.multiply(a, np.float32(alpha))
    x += np.multiply(b, np.float32(1 - alpha))
    return x


def topk_threshold(a, b, alpha, keep):
    return torch.lerp(b, a, alpha).abs_().topk(keep, sorted=False).values.min()


def kthvalue_threshold(a, b, alpha, keep):
    return torch.lerp(b, a, alpha).abs_().kthvalue(len(a) - keep + 1).values


def numpy_partition_threshold(a, b, alpha, keep):
    x = numpy_interpolate(a.numpy(), b.numpy(), alpha)
    np.abs(x, out=x)
    x.partition(len(x) - keep)
    return x[len(x) - keep]


def topk_mask(x, keep):
    mask = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    mask[x.abs().topk(keep, sorted=False).indices] = True
    return mask


def kthvalue_mask(x, keep):
    magnitude = x.abs()
    return magnitude >= magnitude.kthvalue(len(x) - keep + 1).values


def numpy_partition_mask(x, keep):
    magnitude = np.abs(x.numpy())
    threshold = np.partition(magnitude, len(x) - keep)[len(x) - keep]
    return torch.from_numpy(magnitude >= threshold)


def global_unstructured_mask(parameters, keep):
    """torch.nn.utils.prune over all `parameters` together: their masks, flattened and concatenated."""
    modules = [torch.nn.Module() for _ in parameters]
    for module, parameter in zip(modules, parameters, strict=True):
        module.weight = torch.nn.Parameter(parameter)
    amount = sum(p.numel() for p in parameters) - keep
    prune.global_unstructured([(m, "weight") for m in modules], pruning_method=prune.L1Unstructured, amount=amount)
    return torch.cat([m.weight_mask.flatten() for m in modules]).bool()


def topk_prune(a, b, alpha, keep):
    x = torch.lerp(b, a, alpha)
    return x.mul_(topk_mask(x, keep))


def kthvalue_prune(a, b, alpha, keep):
    x = torch.lerp(b, a, alpha)
    return x.mul_(kthvalue_mask(x, keep))


def numpy_partition_prune(a, b, alpha, keep):
    x = numpy_interpolate(a.numpy(), b.numpy(), alpha)
    magnitude = np.abs(x)
    threshold = np.partition(magnitude, len(x) - keep)[len(x) - keep]
    x *= magnitude >= threshold
    return torch.from_numpy(x)
