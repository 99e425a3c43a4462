"""The mask of one round of IMP: the `keep` largest magnitudes of all prunable weights."""

import pytest
import torch

from lpk import ops
from tests import reference


def contestants(x, keep):
    out = torch.empty_like(x)
    layers = x.chunk(20)  # what torch.nn.utils.prune is given: a network of twenty layers
    return {
        "lpk": lambda: ops.magnitude_mask(x, keep),
        "torch.topk": lambda: reference.topk_mask(x, keep),
        "torch.kthvalue": lambda: reference.kthvalue_mask(x, keep),
        "numpy.partition": lambda: reference.numpy_partition_mask(x, keep),
        "global_unstructured": lambda: reference.global_unstructured_mask(layers, keep),
        "copy": lambda: out.copy_(x),
    }


@pytest.mark.parametrize(
    "contestant",
    ["lpk", "torch.topk", "torch.kthvalue", "numpy.partition", "global_unstructured", "copy"],
)
def test_magnitude_mask(measure, case, vectors, contestant):
    if contestant == "numpy.partition" and case.dtype != torch.float32:
        pytest.skip("NumPy has no bfloat16 and computes float16 in software")
    call = contestants(vectors[0], case.keep)[contestant]
    size = case.n * case.dtype.itemsize
    # The vector is read for the threshold and again for the mask, which is one byte an entry.
    measure("magnitude_mask", contestant, call, moved=2 * size if contestant == "copy" else 2 * size + case.n)
