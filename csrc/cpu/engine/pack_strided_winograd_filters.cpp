#include <vector>

#include "../parallel.h"
#include "winograd.h"

namespace lpk::engine {
namespace {

constexpr int64_t kKernel = 7;

// G g of three or four numbers g.
void transform(double* out, int64_t step, const double* g, int64_t g_step, bool odd) {
  constexpr double kPoints[] = {0, 1, -1, 2, -2}, kDivisors[] = {4, -6, -6, 24, 24};
  const int64_t count = odd ? 3 : 4;
  const auto value = [&](double point) {
    double sum = 0;
    for (int64_t i = count - 1; i >= 0; --i) sum = sum * point + g[i * g_step];
    return sum;
  };
  for (int i = 0; i < 5; ++i)
    out[i * step] = value(kPoints[i]) / (kDivisors[i] * (odd ? 1.0 : kPoints[i] - kPoint));
  out[5 * step] = g[(count - 1) * g_step];
  if (!odd) out[6 * step] = value(kPoint) / (kPoint * (kPoint * kPoint - 1) * (kPoint * kPoint - 4));
}

}  // namespace

void pack_strided_winograd_filters(float* packed, const float* weights, const Convolution& convolution,
                                   int64_t together, int threads) {
  const int64_t channels = convolution.channels, size = kStridedPositions * channels * together;
  parallel_for((convolution.filters + together - 1) / together, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group) {
      float* const to = packed + group * size;
      std::fill(to, to + size, 0.0f);
      const int64_t first = group * together, count = std::min(together, convolution.filters - first);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          const float* const g = weights + ((first + i) * channels + c) * kKernel * kKernel;
          for (int phase = 0; phase < 4; ++phase) {
            const bool odd_row = phase / 2, odd_column = phase % 2;
            const int64_t height = odd_row ? kOdd : kEven, width = odd_column ? kOdd : kEven;
            double window[4 * 4], columns[kEven * 4], transformed[kEven * kEven];
            for (int64_t y = 0; y < 4 - odd_row; ++y)
              for (int64_t x = 0; x < 4 - odd_column; ++x)
                window[y * 4 + x] = g[(2 * y + odd_row) * kKernel + 2 * x + odd_column];
            for (int64_t x = 0; x < 4 - odd_column; ++x) transform(columns + x, 4, window + x, 4, odd_row);
            for (int64_t y = 0; y < height; ++y) transform(transformed + y * kEven, 1, columns + y * 4, 1, odd_column);
            for (int64_t x = 0; x < width; ++x)
              for (int64_t y = 0; y < height; ++y)
                to[(strided_offset(channels, x, odd_row, odd_column, c) + y) * together + i] =
                    float(transformed[y * kEven + x]);
          }
        }
      }
    }
  });
}

}  // namespace lpk::engine
