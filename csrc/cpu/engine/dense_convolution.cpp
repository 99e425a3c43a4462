#include "tiling.h"

namespace lpk::engine {

void dense_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                       const DenseFilters& filters, const Epilogue& epilogue, int threads) {
  const Tiling tiling = best_tiling(out, convolution, loops().dense_pixels, [&](int rows, int columns) {
    return loops().dense(rows, columns, convolution.stride_x) != nullptr;
  });
  const int64_t fours = convolution.groups * ((convolution.group_filters() + kFour - 1) / kFour);
  const DenseTask task{filters,
                       convolution.weights(),
                       convolution.group_filters(),
                       convolution.group_channels() * in.channel_stride(),
                       convolution.stride_x * kImages,
                       finish_of(epilogue, out)};
  const int64_t ranges = filter_ranges(tiling.count(), fours, threads);
  const auto loop_of = loops().dense;
  parallel_for(tiling.count() * ranges, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const PlacedTile tile(tiling, i / ranges, out, in, convolution, epilogue.residual);
      const DenseLoop loop = loop_of(tiling.rows, tile.columns, convolution.stride_x);
      loop(task, tile, part(fours, int(ranges), int(i % ranges)), part(fours, int(ranges), int(i % ranges) + 1));
    }
  });
}

}  // namespace lpk::engine
