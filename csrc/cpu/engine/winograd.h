// Winograd's algorithm for two kinds of windows: 3 x 3 with stride 1, and 7 x 7 with stride 2.
#pragma once

#include "engine.h"

namespace lpk::engine {

// A window of stride 2 reads every other row and column, from the first or from the second on: its four phases are
// windows of 4 x 4, 4 x 3, 3 x 4 and 3 x 3 weights with stride 1, each on a quarter of the pixels. Their products are
// added up before the transform of outputs, which is the same for all: the points of 3 weights are among those of 4.
static constexpr bool winograd_strided(const Convolution& convolution) { return convolution.stride_y == 2; }

constexpr int64_t kStridedWindow = 13;            // pixels, squared, that the windows of 4 x 4 outputs cover
constexpr int64_t kStridedGroups = 4;             // of filters, for which a column of positions is taken
constexpr int64_t kEven = 7, kOdd = 6;            // positions in a row or column of a phase with 4 weights, and with 3
constexpr int64_t kBoth = kEven + kOdd;
constexpr int64_t kStridedPositions = kBoth * kBoth;  // of all phases
constexpr double kPoint = 0.5;                    // of the even phases, besides 0, 1, -1, 2, -2 and infinity

// Static, as what different instruction sets are compiled for must not be shared.
//
// Where products lie that are added up: the columns of positions one after the other, in each the even rows' phases, the
// phases' channels, and the rows of positions. Pixels before those of a column's rows, for channel c.
static constexpr int64_t strided_offset(int64_t channels, int64_t column, bool odd_row, bool odd_column, int64_t c) {
  const int64_t phases = column < kOdd ? 2 : 1;  // of columns; the last position is an even one's
  const int64_t number = odd_column * channels + c;
  return column * 2 * kBoth * channels + (odd_row ? phases * channels * kEven + number * kOdd : number * kEven);
}

void pack_strided_winograd_filters(float* packed, const float* weights, const Convolution& convolution,
                                   int64_t together, int threads);

}  // namespace lpk::engine
