#include <cmath>
#include <vector>

#include "tiling.h"

namespace lpk::engine {
namespace {

// The borders of `ranges` ranges of filters that take about the same time.
std::vector<int64_t> balanced(const SparseFilters& filters, int64_t count, int64_t channel_blocks, int64_t ranges) {
  constexpr int64_t kFilter = 4;  // what a filter costs besides its entries, in entries
  std::vector<int64_t> cost(count + 1, 0);
  for (int64_t k = 0; k < count; ++k) {
    cost[k + 1] = cost[k] + kFilter * channel_blocks;
    for (int64_t block = 0; block < channel_blocks; ++block) {
      const int64_t* start = filters.start + block * count + k;
      cost[k + 1] += start[1] - start[0];
    }
  }
  std::vector<int64_t> borders(ranges + 1, count);
  for (int64_t i = 0; i < ranges; ++i)
    borders[i] = std::lower_bound(cost.begin(), cost.end(), cost[count] * i / ranges) - cost.begin();
  return borders;
}

}  // namespace

// With few channels in a block, the input of a tile stays in the first-level cache for all filters; with many, the sums
// are loaded and stored less often. Measured, the best number falls with the root of both the entries that a channel
// has for a filter and the pixels that a channel has in a tile.
int64_t best_channels_per_block(const Convolution& convolution, const Activations& out, int64_t nonzeros) {
  constexpr double kBest = 108.0;
  if (convolution.groups > 1 || nonzeros == 0) return convolution.channels;
  const Tiling tiling = sparse_tiling(out, convolution);
  const double entries = double(nonzeros) / double(convolution.filters * convolution.channels);
  const double pixels = double(covered_pixels(convolution, tiling.rows, tiling.columns));
  const double best = kBest / std::sqrt(entries * pixels);
  const int64_t blocks = std::max<int64_t>(1, std::llround(double(convolution.channels) / best));
  return (convolution.channels + blocks - 1) / blocks;
}

void sparse_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                        const SparseFilters& filters, const Epilogue& epilogue, int threads) {
  const Tiling tiling = sparse_tiling(out, convolution);
  const int64_t channel_blocks = (convolution.channels + filters.channels_per_block - 1) / filters.channels_per_block;
  const SparseTask task{filters, convolution.filters, channel_blocks, convolution.stride_x * kImages,
                        finish_of(epilogue, out)};
  const int64_t nonzeros = filters.start[channel_blocks * convolution.filters];
  threads = threads_for(nonzeros * out.rows() * out.width / 4, threads);
  const int64_t ranges = filter_ranges(tiling.count(), convolution.filters, threads);
  const std::vector<int64_t> borders = balanced(filters, convolution.filters, channel_blocks, ranges);
  const auto loop_of = loops().sparse;
  parallel_for(tiling.count() * ranges, threads, [&](int64_t begin, int64_t end, int) {
    const Sums sums(channel_blocks == 1 ? 0 : convolution.filters * tiling.rows * tiling.columns);
    for (int64_t i = begin; i < end; ++i) {
      const PlacedTile tile(tiling, i / ranges, out, in, convolution, epilogue.residual);
      const SparseLoop loop = loop_of(tiling.rows, tile.columns, convolution.stride_x);
      loop(task, tile, borders[i % ranges], borders[i % ranges + 1], sums.data());
    }
  });
}

}  // namespace lpk::engine
