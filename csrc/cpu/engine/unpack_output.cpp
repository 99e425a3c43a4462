#include "tiling.h"

namespace lpk::engine {

void unpack_output(float* out, const Activations& in, int64_t batch, int threads) {
  const int64_t image = in.channels * in.height * in.width;
  parallel_for(in.blocks * in.channels * in.height, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % in.height, channel = row / in.height % in.channels;
      const int64_t block = row / in.height / in.channels, images = std::min(kImages, batch - block * kImages);
      const float* from = in.pixel(block, y, 0) + channel * in.channel_stride();
      float* to = out + block * kImages * image + (channel * in.height + y) * in.width;
      for (int64_t i = 0; i < images; ++i)
        for (int64_t x = 0; x < in.width; ++x) to[i * image + x] = from[x * kImages + i];
    }
  });
}

}  // namespace lpk::engine
