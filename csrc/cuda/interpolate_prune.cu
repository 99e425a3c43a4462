// The interpolation with what does not survive its threshold set to +0, in one pass.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void prune_kernel(Vectors v, typename D::Stored* out, Scalar<float> alpha, Scalar<float> value,
                             Scalar<int64_t> last) {
  const Threshold threshold{get(value), get(last)};
  map_tile<D>(v, get(alpha), out, [&](auto x, int64_t i) {
    return threshold.survived_by(D::widen(x), i) ? x : D::narrow(0.0f);
  });
}

}  // namespace

void interpolate_prune(void* out, const Vectors& v, Scalar<float> alpha, Scalar<float> value, Scalar<int64_t> last) {
  if (v.n == 0) return;
  for_dtype(v.dtype, [&](auto dtype) {
    using D = decltype(dtype);
    LPK_LAUNCH(prune_kernel<D>, unsigned(tiles(v.n)), kThreads, v.stream, v, static_cast<typename D::Stored*>(out),
               alpha, value, last);
  });
  check_launch();
}

}  // namespace lpk::cuda
