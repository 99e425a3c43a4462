"""The kernels in Triton, for GPUs where the CUDA extension was not compiled.

Imports triton, so it is imported only where a kernel runs. Vectors are one-dimensional contiguous tensors on one
device; scalars lie on it too. Nothing is read on the host, nothing waits, and everything can be captured in a CUDA
graph, after a call with the same dtype, n, alignment and number of coefficients: the first one compiles. Arguments are
not checked here: lpk.ops does that.

interpolate            equation 1
interpolate_threshold  the threshold of one or of several interpolations, in the steps
threshold_bracket      the brackets that a sample gives,
threshold_histogram    the sweeps that narrow each to a single key, and
threshold_last         where the last survivor of that magnitude stands
threshold              what these steps share
interpolate_prune      what survives the threshold
magnitude_mask         the same for one vector, as a mask
elements               what all of them do to one element
"""

from lpk.kernels.interpolate import interpolate
from lpk.kernels.interpolate_prune import interpolate_prune, interpolate_prune_all
from lpk.kernels.interpolate_threshold import interpolate_threshold
from lpk.kernels.magnitude_mask import magnitude_mask

__all__ = ["interpolate", "interpolate_prune", "interpolate_prune_all", "interpolate_threshold", "magnitude_mask"]
