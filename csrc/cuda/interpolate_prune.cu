// The interpolation with what does not survive its threshold set to +0, in one pass: for one
// coefficient, or for many, which read the vectors once.
#include <algorithm>

#include "cut.cuh"
#include "search.h"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void prune_kernel(Vectors v, typename D::Stored* out, Scalar<float> alpha, Scalar<float> value,
                             Scalar<int64_t> last) {
  // The last tiles first: the search for the threshold read them last, so that some of them are still in the cache.
  const int64_t tile = int64_t(gridDim.x) - 1 - blockIdx.x;
  prune_tile(v, Tile<D>(v, tile * kTile), out, get(alpha), Threshold{get(value), get(last)});
}

// Tiles of a and b that stay in the cache while all rows of `out` are written for them, one after the other: a block
// that wrote its tile of all rows would have the device write to thousands of places at once.
#ifdef LPK_EMULATED
constexpr int64_t kTilesTogether = 2;
#else
constexpr int64_t kTilesTogether = 1024;
#endif

// Row k of `out` for the k-th coefficient: a block for each tile of each row.
template <class D>
__global__ void prune_all_kernel(Vectors v, typename D::Stored* out, const __grid_constant__ Coefficients alphas,
                                 const float* values, const int64_t* last, int count) {
  const int64_t first = int64_t(blockIdx.x) / (kTilesTogether * count) * kTilesTogether, left = tiles(v.n) - first;
  const int64_t together = left < kTilesTogether ? left : kTilesTogether, index = int64_t(blockIdx.x) - first * count;
  const int k = int(index / together);
  prune_tile(v, Tile<D>(v, (first + index % together) * kTile), out + k * v.n, get(alphas, k),
             Threshold{values[k], last[k]});
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

namespace {

// So many coefficients as one launch takes.
void prune_some(void* out, const Vectors& v, const Coefficients& alphas, Thresholds thresholds, int count) {
  for_dtype(v.dtype, [&](auto dtype) {
    using D = decltype(dtype);
    LPK_LAUNCH(prune_all_kernel<D>, unsigned(tiles(v.n) * count), kThreads, v.stream, v,
               static_cast<typename D::Stored*>(out), alphas, thresholds.values, thresholds.last, count);
  });
  check_launch();
}

// Calls body(rows, alphas, first, count) for the coefficients from the first-th on that one launch takes.
template <class Body>
void for_some(void* out, const Vectors& v, Numbers alphas, int count, Body body) {
  const int64_t row = v.n * (v.dtype == kFloat32 ? 4 : 2);
  for (int first = 0; v.n > 0 && first < count; first += kMostCoefficients) {
    const int some = std::min(count - first, kMostCoefficients);
    body(static_cast<char*>(out) + first * row, alphas.from(first, some), first, some);
  }
}

}  // namespace

void interpolate_prune_all(void* out, const Vectors& v, Numbers alphas, const float* values, const int64_t* last,
                           int count) {
  for_some(out, v, alphas, count, [&](void* rows, const Coefficients& some, int first, int how_many) {
    prune_some(rows, v, some, {values + first, last + first}, how_many);
  });
}

void find_and_prune(void* out, const Vectors& v, Scalar<float> alpha, int64_t keep, void* workspace) {
  const bool at_once = v.n <= kCutAtOnce;
  const auto found = find_thresholds(v, {{alpha.value}, alpha.device}, 1, keep, workspace, at_once ? Cut{kPrune, out} : Cut{});
  if (!at_once) interpolate_prune(out, v, alpha, {0.0f, found.values}, {0, found.last});
}

void find_and_prune_all(void* out, const Vectors& v, Numbers alphas, int count, int64_t keep, void* workspace) {
  const bool at_once = v.n <= kCutAtOnce;
  for_some(out, v, alphas, count, [&](void* rows, const Coefficients& some, int, int how_many) {
    const auto found = find_thresholds(v, some, how_many, keep, workspace, at_once ? Cut{kPrune, rows} : Cut{});
    if (!at_once) prune_some(rows, v, some, found, how_many);
  });
}

}  // namespace lpk::cuda
