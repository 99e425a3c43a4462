#include "tiling.h"

namespace lpk::engine {

void pack_input(const Activations& out, const float* in, int64_t batch, const int64_t* strides, int threads) {
  parallel_for(out.blocks * out.channels * out.height, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % out.height, channel = row / out.height % out.channels;
      const int64_t block = row / out.height / out.channels, images = std::min(kImages, batch - block * kImages);
      const float* from = in + block * kImages * strides[0] + channel * strides[1] + y * strides[2];
      float* to = out.pixel(block, y, 0) + channel * out.channel_stride();
      for (int64_t x = 0; x < out.width; ++x, from += strides[3], to += kImages) {
        for (int64_t i = 0; i < images; ++i) to[i] = from[i * strides[0]];
        for (int64_t i = images; i < kImages; ++i) to[i] = 0.0f;
      }
    }
  });
}

}  // namespace lpk::engine
