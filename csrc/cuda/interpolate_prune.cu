// The interpolation with what does not survive its threshold set to +0, in one pass.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class T>
__global__ void kernel(Vectors v, T* out, Scalar<float> alpha, Scalar<float> value, Scalar<int64_t> last) {
  for (int64_t i = first_index(); i < v.n; i += stride()) {
    const T x = element<T>(v, get(alpha), i);
    out[i] = survives(widen(x), i, get(value), get(last)) ? x : narrow<T>(0.0f);
  }
}

}  // namespace

void interpolate_prune(void* out, const Vectors& v, Scalar<float> alpha, Scalar<float> value, Scalar<int64_t> last) {
  if (v.dtype == kFloat32) launch(kernel<float>, v, static_cast<float*>(out), alpha, value, last);
  if (v.dtype == kFloat16) launch(kernel<__half>, v, static_cast<__half*>(out), alpha, value, last);
  if (v.dtype == kBfloat16) launch(kernel<__nv_bfloat16>, v, static_cast<__nv_bfloat16*>(out), alpha, value, last);
}

}  // namespace lpk::cuda
