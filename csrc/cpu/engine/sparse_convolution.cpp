#include <cmath>
#include <vector>

#include "tiling.h"

namespace lpk::engine {
namespace {

// The borders of `ranges` ranges of filters that take about the same time.
std::vector<int64_t> balanced(const SparseFilters& filters, int64_t count, int64_t ranges) {
  std::vector<int64_t> borders(ranges + 1, count);
  const int64_t* const work = filters.work;
  for (int64_t i = 0; i < ranges; ++i)
    borders[i] = std::lower_bound(work, work + count + 1, work[count] * i / ranges) - work;
  return borders;
}

void compute(const Activations& out, const Activations& in, const Convolution& convolution,
             const SparseFilters& filters, const Epilogue& epilogue, int threads) {
  const Tiling tiling = sparse_tiling(out, convolution, filters.gathered);
  const int64_t channel_blocks = (convolution.channels + filters.channels_per_block - 1) / filters.channels_per_block;
  const Gather gather{convolution.channels, in.channel_stride, convolution.stride_x * kImages,
                      filters.gathered * kImages};
  const int64_t stride = filters.gathered > 0 ? 1 : convolution.stride_x;
  const SparseTask task{filters, convolution.filters, channel_blocks, stride * kImages, finish_of(epilogue, out)};
  const int64_t nonzeros = filters.start[channel_blocks * convolution.filters];
  threads = threads_for(nonzeros * out.rows() * out.width / 4, threads);
  const int64_t ranges = filter_ranges(tiling.count(), convolution.filters, threads);
  const std::vector<int64_t> borders = balanced(filters, convolution.filters, ranges);
  const auto loop_of = loops().sparse;
  parallel_for(tiling.count() * ranges, threads, [&](int64_t begin, int64_t end, int) {
    const Sums sums(channel_blocks == 1 ? 0 : convolution.filters * tiling.rows * tiling.columns);
    const Sums gathered(convolution.channels * filters.gathered);
    for (int64_t i = begin; i < end; ++i) {
      PlacedTile tile(tiling, i / ranges, out, in, convolution, epilogue.residual);
      if (filters.gathered > 0) {
        if (i == begin || i % ranges == 0) loops().collect(gathered.data(), tile, tiling.rows, tile.columns, gather);
        for (int r = 0; r < tiling.rows; ++r) tile.in[r] = gathered.data() + r * tile.columns * kImages;
      }
      const SparseLoop loop = loop_of(tiling.rows, tile.columns, stride);
      loop(task, tile, borders[i % ranges], borders[i % ranges + 1], sums.data());
    }
  });
}

}  // namespace

// The pixels of a channel lie together in memory: those of many channels, and of images of 2ⁿ pixels even those of few,
// take each other's place in the first-level cache, which gathered ones do not. Each is loaded and stored once more.
int64_t best_gathered(const Convolution& convolution, const Activations& in, int64_t nonzeros) {
  constexpr int64_t kTogether = 288, kLeast = 8, kWeights = 8;
  const int64_t pixels = std::min<int64_t>(loops().sparse_pixels, std::max(kLeast, kTogether / convolution.channels));
  const bool pays = convolution.window() == 1 && convolution.groups == 1 && nonzeros >= kWeights * convolution.channels;
  return pays && 2 * in.channel_stride >= 3 * pixels * kImages ? pixels : 0;
}

// With few channels in a block, the input of a tile stays in the first-level cache for all filters; with many, the sums
// are loaded and stored less often. Measured, the best number falls with the root of both the entries that a channel
// has for a filter and the pixels that a channel has in a tile.
int64_t best_channels_per_block(const Convolution& convolution, const Activations& out, int64_t nonzeros,
                                int64_t gathered) {
  const double factor = convolution.window() == 1 ? 95.0 : 108.0;
  if (convolution.groups > 1 || nonzeros == 0) return convolution.channels;
  const Activations image = rows_join(convolution, out) ? joined(out) : out;
  const Tiling tiling = sparse_tiling(image, convolution, gathered);
  const double entries = double(nonzeros) / double(convolution.filters * convolution.channels);
  const double pixels = double(covered_pixels(convolution, tiling.rows, tiling.columns));
  const double best = factor / std::sqrt(entries * pixels);
  const int64_t blocks = std::max<int64_t>(1, std::llround(double(convolution.channels) / best));
  return (convolution.channels + blocks - 1) / blocks;
}

void sparse_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                        const SparseFilters& filters, const Epilogue& epilogue, int threads) {
  with_rows_joined(out, in, convolution, epilogue, [&](const Activations& to, const Activations& from,
                                                       const Epilogue& ending) {
    compute(to, from, convolution, filters, ending, threads);
  });
}

}  // namespace lpk::engine
