// Which entries survive a threshold.
#include "cut.cuh"
#include "search.h"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void mask_kernel(Vectors v, bool* out, Scalar<float> value, Scalar<int64_t> last) {
  mask_tile(v, own_tile<D>(v), out, Threshold{get(value), get(last)});
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
  const bool at_once = v.n <= kCutAtOnce;
  const auto found = find_thresholds(v, {}, 1, keep, workspace, at_once ? Cut{kMask, out} : Cut{});
  if (!at_once) magnitude_mask(out, v, {0.0f, found.values}, {0, found.last});
}

}  // namespace lpk::cuda
