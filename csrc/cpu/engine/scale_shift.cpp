#include "rows.h"
#include "tiling.h"

namespace lpk::engine {

void scale_shift(const Activations& out, const Activations& in, const Epilogue& epilogue, int threads) {
  const Finish finish = finish_of(epilogue, out);
  const Activations* const residual = epilogue.residual;
  const Rows rows = rows_of(in, out, residual);
  const int64_t floats = rows.pixels * kImages;
  const auto scale_and_shift = loops().scale_shift;
  parallel_for(in.blocks * rows.count * in.channels, threads_for(in.pixels(), threads),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % in.channels, y = i / in.channels % rows.count, block = i / in.channels / rows.count;
      const float scale = finish.scale == nullptr ? 1.0f : finish.scale[channel];
      const float shift = finish.bias == nullptr ? 0.0f : finish.bias[channel];
      const float* const from = in.pixel(block, y, 0) + channel * in.channel_stride;
      const float* const added =
          residual == nullptr ? nullptr : residual->pixel(block, y, 0) + channel * finish.residual_channel;
      float* const to = out.pixel(block, y, 0) + channel * finish.out_channel;
      for (int64_t x = 0; x < floats; x += kPiece) {
        const int64_t n = std::min(kPiece, floats - x);
        scale_and_shift(to + x, from + x, added == nullptr ? nullptr : added + x, n, scale, shift, finish.low,
                        finish.high);
        if (finish.activate != nullptr) finish.activate(to + x, n, finish.slope);
      }
    }
  });
}

}  // namespace lpk::engine
