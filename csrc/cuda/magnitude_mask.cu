// Which entries survive a threshold.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class T>
__global__ void kernel(Vectors v, bool* out, Scalar<float> value, Scalar<int64_t> last) {
  for (int64_t i = first_index(); i < v.n; i += stride())
    out[i] = survives(widen(element<T>(v, 1.0f, i)), i, get(value), get(last));
}

}  // namespace

void magnitude_mask(bool* out, const Vectors& v, Scalar<float> value, Scalar<int64_t> last) {
  if (v.dtype == kFloat32) launch(kernel<float>, v, out, value, last);
  if (v.dtype == kFloat16) launch(kernel<__half>, v, out, value, last);
  if (v.dtype == kBfloat16) launch(kernel<__nv_bfloat16>, v, out, value, last);
}

}  // namespace lpk::cuda
