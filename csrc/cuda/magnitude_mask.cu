// Which entries survive a threshold.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void mask_kernel(Vectors v, bool* out, Scalar<float> value, Scalar<int64_t> last) {
  const Threshold threshold{get(value), get(last)};
  map_tile(v, own_tile<D>(v), 1.0f, out, [&](auto x, int64_t i) { return threshold.survived_by(D::widen(x), i); });
}

}  // namespace

void magnitude_mask(bool* out, const Vectors& v, Scalar<float> value, Scalar<int64_t> last) {
  if (v.n == 0) return;
  for_dtype(v.dtype, [&](auto dtype) {
    LPK_LAUNCH(mask_kernel<decltype(dtype)>, unsigned(tiles(v.n)), kThreads, v.stream, v, out, value, last);
  });
  check_launch();
}

void find_and_mask(bool* out, const Vectors& v, int64_t keep, void* workspace) {
  const auto found = find_thresholds(v, {}, 1, keep, workspace);
  magnitude_mask(out, v, {0.0f, found.values}, {0, found.last});
}

}  // namespace lpk::cuda
