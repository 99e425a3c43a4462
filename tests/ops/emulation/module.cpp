// What lpk._core has for CUDA, as a module of its own, with the kernels emulated.
#include "cuda.h"

#include "cuda/interpolate.cu"
#include "cuda/interpolate_prune.cu"
#include "cuda/interpolate_threshold.cu"
#include "cuda/magnitude_mask.cu"

#include "binding_cuda.cpp"

PYBIND11_MODULE(emulated, m) {
  define_cuda(m);
  m.attr("cuda_compiled") = true;
}
