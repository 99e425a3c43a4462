#include "tiling.h"

namespace lpk::engine {
namespace {

// So many that the inputs of a tile take half of a first-level cache of 32 KiB.
int64_t best_weights_per_block(const Convolution& convolution, const Tiling& tiling) {
  constexpr int64_t kInputs = 16384 / (kImages * sizeof(float));  // pixels
  const int64_t channels = std::max<int64_t>(8, kInputs / covered_pixels(convolution, tiling.rows, tiling.columns));
  // Blocks of equal size: a last one with a few channels would cost as many loads and stores of sums.
  const int64_t blocks = (convolution.group_channels() + channels - 1) / channels;
  return (convolution.group_channels() + blocks - 1) / blocks * convolution.window();
}

void compute(const Activations& out, const Activations& in, const Convolution& convolution, const DenseFilters& filters,
             const Epilogue& epilogue, int threads) {
  const Tiling tiling = best_tiling(out, convolution, loops().dense_pixels, [&](int rows, int columns) {
    return loops().dense(rows, columns, convolution.stride_x) != nullptr;
  });
  const int64_t fours = convolution.groups * ((convolution.group_filters() + kFour - 1) / kFour);
  const int64_t weights_per_block = best_weights_per_block(convolution, tiling);
  const DenseTask task{filters,
                       convolution.weights(),
                       weights_per_block,
                       convolution.group_filters(),
                       convolution.group_channels() * in.channel_stride,
                       convolution.stride_x * kImages,
                       finish_of(epilogue, out)};
  threads = threads_for(convolution.weights() * out.pixels() / 4, threads);
  const int64_t ranges = filter_ranges(tiling.count(), fours, threads);
  const auto loop_of = loops().dense;
  parallel_for(tiling.count() * ranges, threads, [&](int64_t begin, int64_t end, int) {
    const Sums sums(weights_per_block < task.weights ? fours * kFour * tiling.rows * tiling.columns : 0);
    for (int64_t i = begin; i < end; ++i) {
      const PlacedTile tile(tiling, i / ranges, out, in, convolution, epilogue.residual);
      const DenseLoop loop = loop_of(tiling.rows, tile.columns, convolution.stride_x);
      loop(task, tile, part(fours, int(ranges), int(i % ranges)), part(fours, int(ranges), int(i % ranges) + 1),
           sums.data());
    }
  });
}

}  // namespace

void dense_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                       const DenseFilters& filters, const Epilogue& epilogue, int threads) {
  with_rows_joined(out, in, convolution, epilogue, [&](const Activations& to, const Activations& from,
                                                       const Epilogue& ending) {
    compute(to, from, convolution, filters, ending, threads);
  });
}

}  // namespace lpk::engine
