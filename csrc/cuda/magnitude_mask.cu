// Which entries survive a threshold.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void mask_kernel(Vectors v, bool* out, Scalar<float> value, Scalar<int64_t> last) {
  for (int64_t i = first_index(); i < v.n; i += stride()) {
    const float x = D::widen(element<D>(v, 1.0f, i));
    if (!finite(x)) report(v, i);
    out[i] = survives(x, i, get(value), get(last));
  }
}

}  // namespace

void magnitude_mask(bool* out, const Vectors& v, Scalar<float> value, Scalar<int64_t> last) {
  if (v.n == 0) return;
  for_dtype(v.dtype, [&](auto dtype) {
    using D = decltype(dtype);
    LPK_LAUNCH(mask_kernel<D>, blocks_for((v.n + kThreads - 1) / kThreads), kThreads, v.stream, v, out, value, last);
  });
  check_launch();
}

}  // namespace lpk::cuda
