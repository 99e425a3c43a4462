#include "lanes.h"
#include "rows.h"
#include "tiling.h"

namespace lpk::engine {
namespace {

// The pixel of a block and channel of y, the lanes of which are images, with the lanes of x's block.
void spread(float* to, const Activations& y, int64_t channel, const std::array<Lane, kImages>& lanes) {
  alignas(64) int32_t from[kImages];
  for (int64_t i = 0; i < kImages; ++i) from[i] = int32_t(lanes[i].image % kImages);
  loops().permute(to, y.pixel(lanes[0].image / kImages, 0, 0) + channel * y.channel_stride(), from);
}

}  // namespace

void multiply(const Activations& out, const Activations& x, const Activations& y, Activation activation, float slope,
              int64_t first, int threads) {
  const Finish finish = finish_of({nullptr, nullptr, nullptr, activation, slope}, out);
  const bool all_pixels = y.height == 1 && y.width == 1 && y.patches.count() == 1;  // of an image are multiplied by one
  const Rows rows = rows_of(x, out, all_pixels ? nullptr : &y);
  const int64_t floats = rows.pixels * kImages;
  const auto times = loops().multiply;
  parallel_for(x.blocks * x.channels, threads_for(x.pixels(), threads), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / x.channels, channel = i % x.channels;
      alignas(64) float factor[kImages];
      if (all_pixels) spread(factor, y, channel, lanes_of(x, first + block));
      for (int64_t row = 0; row < rows.count; ++row) {
        const float* const from = x.pixel(block, row, 0) + channel * x.channel_stride();
        const float* const other =
            all_pixels ? factor : y.pixel(first + block, row, 0) + channel * y.channel_stride();
        float* const to = out.pixel(block, row, 0) + channel * out.channel_stride();
        for (int64_t i = 0; i < floats; i += kPiece) {
          const int64_t n = std::min(kPiece, floats - i);
          times(to + i, from + i, all_pixels ? other : other + i, n, all_pixels ? 0 : kImages, finish.low,
                finish.high);
          if (finish.activate != nullptr) finish.activate(to + i, n, finish.slope);
        }
      }
    }
  });
}

}  // namespace lpk::engine
