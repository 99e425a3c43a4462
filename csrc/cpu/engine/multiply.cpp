#include "lanes.h"
#include "rows.h"
#include "tiling.h"

namespace lpk::engine {
namespace {

// The pixel of a block and channel of y, the lanes of which are images, with the lanes of x's block.
void spread(float* to, const Activations& y, int64_t channel, const std::array<Lane, kImages>& lanes) {
  alignas(64) int32_t from[kImages];
  for (int64_t i = 0; i < kImages; ++i) from[i] = int32_t(lanes[i].image % kImages);
  loops().permute(to, y.pixel(lanes[0].image / kImages, 0, 0) + channel * y.channel_stride, from);
}

}  // namespace

void multiply(const Activations& out, const Activations& x, const Activations& y, Activation activation, float slope,
              int64_t first, int threads) {
  const Finish finish = finish_of({nullptr, nullptr, nullptr, activation, slope}, out);
  const bool all_pixels = y.height == 1 && y.width == 1 && y.patches.count() == 1;  // of an image are multiplied by one
  const Rows rows = rows_of(x, out, all_pixels ? nullptr : &y);
  const int64_t floats = rows.pixels * kImages;
  const auto times = loops().multiply;
  parallel_for(x.blocks * rows.count * x.channels, threads_for(x.pixels(), threads),
               [&](int64_t begin, int64_t end, int) {
    std::array<Lane, kImages> lanes;
    int64_t lanes_block = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % x.channels, row = i / x.channels % rows.count, block = i / x.channels / rows.count;
      if (block != lanes_block) lanes = lanes_of(x, first + (lanes_block = block));
      alignas(64) float factor[kImages];
      if (all_pixels) spread(factor, y, channel, lanes);
      const float* const from = x.pixel(block, row, 0) + channel * x.channel_stride;
      const float* const other = all_pixels ? factor : y.pixel(first + block, row, 0) + channel * y.channel_stride;
      float* const to = out.pixel(block, row, 0) + channel * out.channel_stride;
      for (int64_t at = 0; at < floats; at += kPiece) {
        const int64_t n = std::min(kPiece, floats - at);
        times(to + at, from + at, all_pixels ? other : other + at, n, all_pixels ? 0 : kImages, finish.low,
              finish.high);
        if (finish.activate != nullptr) finish.activate(to + at, n, finish.slope);
      }
    }
  });
}

}  // namespace lpk::engine
