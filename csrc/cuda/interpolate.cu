// x = fma(alpha, a, beta * b), element by element.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class T>
__global__ void kernel(Vectors v, T* out, Scalar<float> alpha) {
  for (int64_t i = first_index(); i < v.n; i += stride()) out[i] = element<T>(v, get(alpha), i);
}

}  // namespace

void interpolate(void* out, const Vectors& v, Scalar<float> alpha) {
  if (v.dtype == kFloat32) launch(kernel<float>, v, static_cast<float*>(out), alpha);
  if (v.dtype == kFloat16) launch(kernel<__half>, v, static_cast<__half*>(out), alpha);
  if (v.dtype == kBfloat16) launch(kernel<__nv_bfloat16>, v, static_cast<__nv_bfloat16*>(out), alpha);
}

}  // namespace lpk::cuda
