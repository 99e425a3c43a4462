// How the outputs of a convolution are cut into tiles, and tiles into tasks for threads.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "../parallel.h"
#include "loops.h"
#include "rows.h"
#include "work.h"

namespace lpk::engine {

// Each row of the output is cut into `pieces` of nearly equal width, and the rows of all images are taken `rows` at a
// time.
struct Tiling {
  int rows;
  int columns;
  int64_t pieces;
  int64_t groups;  // of rows

  int64_t count() const { return groups * pieces; }
};

// How many pixels of an input channel the windows of a tile cover.
inline int64_t covered_pixels(const Convolution& convolution, int rows, int columns) {
  const int64_t height = (rows - 1) * convolution.stride_y + convolution.kernel_height;
  const int64_t width = (columns - 1) * convolution.stride_x + convolution.kernel_width;
  return std::min<int64_t>(height, rows * convolution.kernel_height) *
         std::min<int64_t>(width, columns * convolution.kernel_width);
}

// The tiles that take the least time. A tile costs its sums, for walking the weights about three sums more, and a
// little for each input pixel that has to come from the second-level cache.
template <class HasLoop>
Tiling best_tiling(const Activations& out, const Convolution& convolution, int pixels, HasLoop&& has_loop) {
  constexpr int64_t kSum = 10, kWalk = 30, kInput = 1;
  Tiling best{};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int rows = 1; rows <= kMostRows; ++rows) {
    for (int columns = 1; columns <= std::min<int64_t>(pixels / rows, out.width); ++columns) {
      if (!has_loop(rows, columns)) continue;
      const Tiling tiling{rows, columns, (out.width + columns - 1) / columns, (out.rows() + rows - 1) / rows};
      const int64_t tile = kSum * rows * columns + kWalk + kInput * covered_pixels(convolution, rows, columns);
      if (tiling.count() * tile < least) {
        least = tiling.count() * tile;
        best = tiling;
      }
    }
  }
  return best;
}

// gathered: of SparseFilters.
inline Tiling sparse_tiling(const Activations& out, const Convolution& convolution, int64_t gathered) {
  const int pixels = gathered > 0 ? int(gathered) : loops().sparse_pixels;
  return best_tiling(out, convolution, pixels, [&](int rows, int columns) {
    return loops().sparse(rows, columns, gathered > 0 ? 1 : convolution.stride_x) != nullptr;
  });
}

// Windows of one pixel do not care for rows: where nothing lies between these, an image is one row, into which larger
// tiles fit.
inline bool rows_join(const Convolution& convolution, const Activations& x) {
  return convolution.window() == 1 && convolution.stride_y == 1 && convolution.stride_x == 1 &&
         convolution.padding_y == 0 && convolution.padding_x == 0 && rows_follow(x);
}

inline Activations joined(Activations x) {
  x.width *= x.height;
  x.height = 1;
  return x;
}

// compute(out, in, epilogue), on images of one row where that is the same.
template <class Compute>
void with_rows_joined(const Activations& out, const Activations& in, const Convolution& convolution,
                      const Epilogue& epilogue, Compute&& compute) {
  const Activations* const residual = epilogue.residual;
  if (!rows_join(convolution, out) || !rows_follow(in) || (residual != nullptr && !rows_follow(*residual)))
    return compute(out, in, epilogue);
  Epilogue ending = epilogue;
  Activations row{};
  if (residual != nullptr) ending.residual = &(row = joined(*residual));
  compute(joined(out), joined(in), ending);
}

// A tile with its addresses, and its width.
struct PlacedTile : Tile {
  int columns;

  PlacedTile(const Tiling& tiling, int64_t index, const Activations& output, const Activations& input,
             const Convolution& convolution, const Activations* added) {
    const int64_t piece = index % tiling.pieces, first_row = index / tiling.pieces * tiling.rows;
    const int64_t x = part(output.width, int(tiling.pieces), int(piece));
    columns = int(part(output.width, int(tiling.pieces), int(piece) + 1) - x);
    rows = int(std::min<int64_t>(tiling.rows, output.rows() - first_row));
    for (int r = 0; r < tiling.rows; ++r) {
      const int64_t row = first_row + std::min(r, rows - 1), block = row / output.height, y = row % output.height;
      in[r] = input.pixel(block, y * convolution.stride_y - convolution.padding_y,
                          x * convolution.stride_x - convolution.padding_x);
      out[r] = output.pixel(block, y, x);
      residual[r] = added == nullptr ? nullptr : added->pixel(block, y, x);
    }
  }
};

inline Finish finish_of(const Epilogue& epilogue, const Activations& out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool relu = epilogue.activation == kRelu || epilogue.activation == kRelu6;
  return {epilogue.scale,
          epilogue.bias,
          epilogue.residual != nullptr,
          relu ? 0.0f : -kInfinity,
          epilogue.activation == kRelu6 ? 6.0f : kInfinity,
          loops().activation(epilogue.activation),
          epilogue.slope,
          out.channel_stride,
          epilogue.residual == nullptr ? 0 : epilogue.residual->channel_stride};
}

// Memory for the sums of a range of filters, aligned for vectors.
class Sums {
 public:
  explicit Sums(int64_t pixels) : memory_(new float[(pixels + 1) * kImages]) {}
  float* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (64 - address % 64) % 64 / sizeof(float);
  }

 private:
  std::unique_ptr<float[]> memory_;
};

// Into how many ranges the filters are cut, so that every thread gets a few tasks even where there are few tiles.
inline int64_t filter_ranges(int64_t tiles, int64_t filters, int threads) {
  constexpr int64_t kTasks = 4;  // for each thread
  if (threads == 1) return 1;
  return std::clamp<int64_t>((kTasks * threads + tiles - 1) / tiles, 1, filters);
}

// The activations' offset from a channel's first pixel to that of a weight's window position.
inline int64_t weight_offset(const Convolution& convolution, const Activations& in, int64_t weight) {
  const int64_t channel = weight / convolution.window(), position = weight % convolution.window();
  const int64_t y = position / convolution.kernel_width, x = position % convolution.kernel_width;
  return channel * in.channel_stride + y * convolution.dilation_y * in.row_stride +
         x * convolution.dilation_x * kImages;
}

}  // namespace lpk::engine
