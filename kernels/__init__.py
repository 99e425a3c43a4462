"""The kernels in Triton, for GPUs where the CUDA extension was not compiled.

Imports triton, so it is imported only where a kernel runs. Vectors are one-dimensional contiguous tensors on one
device, which has to be the current one; scalars lie on it too. Nothing is read on the host, nothing waits, and
everything can be captured in a CUDA graph, after a call with the same dtype, n, alignment and number of coefficients:
the first one compiles. Arguments are not checked here: lpk.ops does that.

interpolate            equation 1
interpolate_threshold  the threshold of one or of several interpolations, in the steps
threshold_bracket      the brackets that a sample gives,
threshold_sweep        one sweep that counts and writes what may be inside of them,
threshold_marked       the selection among that; or else
threshold_ties         the last survivor among equal magnitudes, and
threshold_histogram    the magnitude by histograms of all entries
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
