#include "tiling.h"

namespace lpk::engine {

void scale_shift(const Activations& out, const Activations& in, const Epilogue& epilogue, int threads) {
  const Finish finish = finish_of(epilogue, out);
  const Activations* const residual = epilogue.residual;
  const auto scale_and_shift = loops().scale_shift;
  parallel_for(in.blocks * in.channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / in.channels, channel = i % in.channels;
      const float scale = finish.scale == nullptr ? 1.0f : finish.scale[channel];
      const float shift = finish.bias == nullptr ? 0.0f : finish.bias[channel];
      for (int64_t y = 0; y < in.height; ++y) {
        const float* from = in.pixel(block, y, 0) + channel * in.channel_stride();
        const float* added = residual == nullptr ? nullptr
                                                 : residual->pixel(block, y, 0) + channel * finish.residual_channel;
        float* to = out.pixel(block, y, 0) + channel * finish.out_channel;
        scale_and_shift(to, from, added, in.width * kImages, scale, shift, finish.low, finish.high);
        if (finish.activate != nullptr) finish.activate(to, in.width * kImages, finish.slope);
      }
    }
  });
}

}  // namespace lpk::engine
