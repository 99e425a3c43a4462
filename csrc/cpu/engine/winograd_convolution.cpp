#include <stdexcept>
#include <vector>

#include "tiling.h"
#include "winograd.h"

namespace lpk::engine {
namespace {

// G g of three numbers g, for the points 0, 1, -1, 2, -2 and infinity.
void transform(double* out, int64_t step, double g0, double g1, double g2) {
  const double even1 = (g0 + g2) * (-1.0 / 6), odd1 = g1 * (1.0 / 6);
  const double even2 = g0 * (1.0 / 24) + g2 * (1.0 / 6), odd2 = g1 * (1.0 / 12);
  out[0] = g0 * (1.0 / 4);
  out[step] = even1 - odd1;
  out[2 * step] = even1 + odd1;
  out[3 * step] = even2 + odd2;
  out[4 * step] = even2 - odd2;
  out[5 * step] = g2;
}

// G g Gᵀ of a window g.
void transform_window(double* out, const float* g) {
  double columns[kWindow * 3];
  for (int x = 0; x < 3; ++x) transform(columns + x, 3, g[x], g[3 + x], g[6 + x]);
  for (int y = 0; y < kWindow; ++y)
    transform(out + y * kWindow, 1, columns[y * 3], columns[y * 3 + 1], columns[y * 3 + 2]);
}

int64_t groups_of(const Convolution& convolution, int64_t together) {
  return (convolution.filters + together - 1) / together;
}

// Of the tiles of all blocks, row by row. Behind the last one comes that again, and is not stored.
WinogradTile placed_tile(int64_t index, const Activations& out, const Activations& in, const Convolution& convolution,
                         const Activations* residual) {
  const int64_t columns = (out.width + kOutputs - 1) / kOutputs, rows = (out.height + kOutputs - 1) / kOutputs;
  const int64_t last = out.blocks * rows * columns - 1;
  const bool exists = index <= last;
  index = std::min(index, last);
  const int64_t block = index / (rows * columns);
  const int64_t y = index / columns % rows * kOutputs, x = index % columns * kOutputs;
  const int64_t in_y = y * convolution.stride_y - convolution.padding_y;
  const int64_t in_x = x * convolution.stride_x - convolution.padding_x;
  const int64_t window = winograd_strided(convolution) ? kStridedWindow : kWindow;
  return {in.pixel(block, in_y, in_x),
          out.pixel(block, y, x),
          residual == nullptr ? nullptr : residual->pixel(block, y, x),
          int(std::min(window, in.height + in.border - in_y)),
          int(std::min(window, in.width + in.border - in_x)),
          exists ? int(std::min(kOutputs, out.height - y)) : 0,
          int(std::min(kOutputs, out.width - x))};
}

}  // namespace

bool winograd_applies(const Convolution& convolution) {
  const auto is = [&](int64_t kernel, int64_t stride) {
    return convolution.kernel_height == kernel && convolution.kernel_width == kernel &&
           convolution.stride_y == stride && convolution.stride_x == stride;
  };
  const bool plain = convolution.groups == 1 && convolution.dilation_y == 1 && convolution.dilation_x == 1;
  return plain && (is(3, 1) || is(7, 2));
}

// With more channels fewer tiles are transformed at once, so that what they become fits into the second-level cache; one
// where there is no other. Then more filters share it.
int64_t winograd_together(const Convolution& convolution, const Activations& out) {
  if (winograd_strided(convolution)) return loops().strided_winograd_filters;
  constexpr int64_t kMost = 24;
  const bool one = out.blocks == 1 && out.height <= kOutputs && out.width <= kOutputs;
  if (one && loops().winograd(kMost) != nullptr) return kMost;
  return convolution.channels <= 96 ? 6 : 12;
}

int64_t winograd_filters_size(const Convolution& convolution, int64_t together) {
  const int64_t positions = winograd_strided(convolution) ? kStridedPositions : kPositions;
  return groups_of(convolution, together) * positions * convolution.channels * together;
}

void pack_winograd_filters(float* packed, const float* weights, const Convolution& convolution, int64_t together,
                           int threads) {
  if (winograd_strided(convolution))
    return pack_strided_winograd_filters(packed, weights, convolution, together, threads);
  const int64_t channels = convolution.channels;
  parallel_for(groups_of(convolution, together), threads, [&](int64_t begin, int64_t end, int) {
    std::vector<double> transformed(together * kPositions);
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * together, count = std::min(together, convolution.filters - first);
      std::fill(transformed.begin(), transformed.end(), 0.0);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < count; ++i)
          transform_window(transformed.data() + i * kPositions, weights + ((first + i) * channels + c) * 9);
        for (int64_t p = 0; p < kPositions; ++p) {
          float* const to = packed + ((group * kPositions + p) * channels + c) * together;
          for (int64_t i = 0; i < together; ++i) to[i] = float(transformed[i * kPositions + p]);
        }
      }
    }
  });
}

void winograd_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                          const WinogradFilters& filters, const Epilogue& epilogue, int threads) {
  const bool strided = winograd_strided(convolution);
  const WinogradLoop loop = strided ? loops().strided_winograd(filters.together) : loops().winograd(filters.together);
  if (loop == nullptr) throw std::invalid_argument("the filters were packed for another instruction set");
  const int64_t rows = (out.height + kOutputs - 1) / kOutputs, columns = (out.width + kOutputs - 1) / kOutputs;
  const int64_t together = filters.together, at_once = strided ? 1 : loops().winograd_tiles(together);
  const int64_t batches = (out.blocks * rows * columns + at_once - 1) / at_once;
  // No more ranges of filters than threads need: each transforms the input anew.
  const int64_t groups = groups_of(convolution, together);
  const int64_t ranges = std::min<int64_t>(groups, (threads + batches - 1) / batches);
  const Activations* const residual = epilogue.residual;
  const WinogradTask task{filters,
                          convolution.channels,
                          convolution.filters,
                          in.row_stride,
                          in.channel_stride,
                          out.row_stride,
                          residual == nullptr ? 0 : residual->row_stride,
                          finish_of(epilogue, out)};
  parallel_for(batches * ranges, threads, [&](int64_t begin, int64_t end, int) {
    const Sums memory(strided ? kStridedPositions * convolution.channels + kStridedGroups * together * kOutputs * kEven
                              // One pixel more for each position, so that positions do not share cache sets.
                              : kPositions * (convolution.channels * at_once + 1 + together * at_once));
    std::vector<WinogradTile> tiles(at_once);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t t = 0; t < at_once; ++t)
        tiles[t] = placed_tile(i / ranges * at_once + t, out, in, convolution, residual);
      loop(task, tiles.data(), part(groups, int(ranges), int(i % ranges)),
           part(groups, int(ranges), int(i % ranges) + 1), memory.data());
    }
  });
}

}  // namespace lpk::engine
