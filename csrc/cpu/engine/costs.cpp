// What the ways to compute a convolution cost, in the time of the dense loop: fitted to bench/sparse_layers.py.
#include <cmath>

#include "compiled.h"
#include "tiling.h"
#include "winograd.h"

namespace lpk::engine {

// A product takes a little longer than in the dense loop, and one pixel of the tile more for walking the weight; in both
// a filter costs something besides, in products. Weights of 1 x 1 windows share no pixels in the first-level cache, but
// their inputs are few enough to be gathered.
double sparse_cost(const Convolution& convolution, const Activations& out, double share) {
  constexpr double kOnePixel = 1.2, kFilter = 8, kDenseFilter = 10, kAlways = 0.03;
  const double weights = double(convolution.weights());
  const int64_t nonzeros = std::llround(share * weights * double(convolution.filters));
  const Activations image = rows_join(convolution, out) ? joined(out) : out;
  const Tiling tiling = sparse_tiling(image, convolution, best_gathered(convolution, out, nonzeros));
  const double pixels = tiling.rows * tiling.columns;
  const double speed = loops().sparse_speed * (convolution.window() == 1 ? kOnePixel : 1.0);
  const double products = weights * share / speed * (pixels + 1) / pixels;
  const double memory = loops().memory_cost;
  return (products + memory * kFilter) / (weights + memory * kDenseFilter) + memory * kAlways;
}

// An input is loaded for the filters whose sums are in registers together, code comes from beyond the caches for each
// block of images, and a filter costs something besides. Where it is as fast as the dense loop, its memory is too much.
double compiled_cost(const Convolution& convolution, const Activations& out, double share) {
  constexpr double kLoad = 0.35, kCode = 7, kFilter = 6, kDenseFilter = 10, kMemory = 1.05;
  if (!compiles()) return std::numeric_limits<double>::infinity();
  const double weights = double(convolution.weights()), together = compiled_together(convolution);
  const double loads = weights * (1 - std::pow(1 - share, together)) / together;
  const double pixels = double(out.height * out.width);
  return kMemory * (weights * share * (1 + kCode / pixels) + kLoad * loads + kFilter) / (weights + kDenseFilter);
}

// In products of the dense loop: pixels of lanes that hold no image are not computed, and the weights come from memory.
double lane_cost(const Convolution& convolution, const Activations& out, int64_t lanes) {
  constexpr double kWeight = 0.28, kLane = 0.57;
  const bool pays = convolution.groups == 1 && 2 * convolution.filters >= lane_together();
  if (!pays || out.height > 1 || out.width > 1) return std::numeric_limits<double>::infinity();
  return kWeight + kLane * double(std::min(lanes, kImages)) / kImages;
}

// As winograd_cost, with stride 2: 169 products for 784, of a tile at a time. The fewer filters lie together, the more
// of the time its inputs are loaded.
double strided_winograd_cost(const Convolution& convolution, const Activations& out) {
  constexpr double kProducts = 0.03, kLoads = 0.84, kInput = 3, kOutput = 0.2;
  const double products = kProducts + kLoads / loops().strided_winograd_filters;
  const int64_t tiles = ((out.height + kOutputs - 1) / kOutputs) * ((out.width + kOutputs - 1) / kOutputs);
  const double computed = double(tiles * kOutputs * kOutputs), pixels = double(out.height * out.width);
  const double memory = kInput / double(convolution.filters) + kOutput / double(convolution.channels);
  return computed / pixels * (products + loops().memory_cost * memory);
}

// A quarter of the products, and the transforms of inputs, which all filters share, and of outputs, which all channels
// do. Tiles that reach beyond the image are computed in vain. Four times as many weights have to come from memory for
// all pixels of a block; too many do not fit into any cache.
double winograd_cost(const Convolution& convolution, const Activations& out) {
  constexpr double kProducts = 0.26, kInput = 2.4, kOutput = 2.4, kWeights = 0.7;
  constexpr int64_t kMostWeights = (16 << 20) / sizeof(float);
  const int64_t together = winograd_together(convolution, out);
  if (!winograd_applies(convolution) || winograd_filters_size(convolution, together) > kMostWeights)
    return std::numeric_limits<double>::infinity();
  if (winograd_strided(convolution)) return strided_winograd_cost(convolution, out);
  const int64_t tiles = ((out.height + kOutputs - 1) / kOutputs) * ((out.width + kOutputs - 1) / kOutputs);
  const int64_t at_once = loops().winograd_tiles(together);
  const double computed = double((tiles + at_once - 1) / at_once * at_once * kOutputs * kOutputs);
  const double pixels = double(out.height * out.width);
  const double memory =
      kInput / double(convolution.filters) + kOutput / double(convolution.channels) + kWeights / computed;
  return computed / pixels * (kProducts + loops().memory_cost * memory);
}

}  // namespace lpk::engine
