"""The NumPy peers of tests/reference.py for CuPy, which partitions on the GPU. Vectors are CuPy arrays."""

import numpy as np

from tests.reference import numpy_interpolate


def arrays(*tensors):
    """CUDA tensors as CuPy arrays on the same memory."""
    import cupy

    return [cupy.from_dlpack(tensor) for tensor in tensors]


def threshold(a, b, alpha, keep):
    x = numpy_interpolate(a, b, alpha)
    return kth_magnitude(x, keep)


def mask(x, keep):
    return abs(x) >= kth_magnitude(x, keep)


def prune(a, b, alpha, keep):
    x = numpy_interpolate(a, b, alpha)
    x *= mask(x, keep)
    return x


def kth_magnitude(x, keep):
    return np.partition(abs(x), len(x) - keep)[len(x) - keep]  # CuPy's, for a CuPy array
