#include "tiling.h"

namespace lpk::engine {
namespace {

// The strip of a piece of the rows from `top` to `bottom`.
Strip placed_strip(const Activations& out, const Activations& in, const Convolution& convolution,
                   const Activations* residual, int64_t block, int64_t top, int64_t bottom, int64_t left) {
  return {in.pixel(block, top * convolution.stride_y - convolution.padding_y,
                   left * convolution.stride_x - convolution.padding_x),
          out.pixel(block, top, left), residual == nullptr ? nullptr : residual->pixel(block, top, left), bottom - top};
}

}  // namespace

void depthwise_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                           const SparseFilters& filters, const Epilogue& epilogue, int threads) {
  const auto loop_of = loops().depthwise;
  const Tiling tiling = best_tiling(out.some({0, 1, 0}), convolution, loops().sparse_pixels, [&](int rows, int columns) {
    return loop_of(rows, columns, convolution.stride_x) != nullptr;
  });
  const Activations* const residual = epilogue.residual;
  const DepthwiseTask task{filters,
                           convolution.stride_x * kImages,
                           convolution.stride_y * in.row_stride,
                           out.row_stride,
                           residual == nullptr ? 0 : residual->row_stride,
                           finish_of(epilogue, out)};
  const int64_t count = convolution.filters, pieces = tiling.pieces;
  threads = threads_for(out.blocks * filters.start[count] * out.height * out.width / 4, threads);
  // Where there are few channels, threads share their rows.
  const int64_t bands = std::min(tiling.groups, filter_ranges(out.blocks * count, tiling.groups, threads));
  parallel_for(out.blocks * count * bands, threads, [&](int64_t begin, int64_t end, int) {
    int64_t together = 1;
    for (int64_t i = begin; i < end; i += together) {
      const int64_t band = i % bands, filter = i / bands % count, block = i / bands / count;
      const int64_t first = part(tiling.groups, int(bands), int(band)) * tiling.rows;
      const int64_t last = std::min(out.height, part(tiling.groups, int(bands), int(band) + 1) * tiling.rows);
      if (bands == 1 && pieces == 1) together = std::min(count - filter, end - i);
      // Row by row: memory is read, and written, in its order.
      const int64_t height = pieces == 1 ? last - first : tiling.rows;
      for (int64_t top = first; top < last; top += height) {
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const int64_t left = part(out.width, int(pieces), int(piece));
          const int64_t width = part(out.width, int(pieces), int(piece) + 1) - left;
          const int64_t bottom = std::min(top + height, last);
          const Strip strip = placed_strip(out, in, convolution, residual, block, top, bottom, left);
          loop_of(tiling.rows, int(width), convolution.stride_x)(task, strip, filter, filter + together);
        }
      }
    }
  });
}

}  // namespace lpk::engine
