#include "../parallel.h"
#include "lanes.h"

namespace lpk::engine {

void unpack_output(float* out, const Activations& in, int64_t batch, int threads) {
  const int64_t height = in.patches.image_height, width = in.patches.image_width;
  parallel_for(in.blocks * in.channels * in.height, threads, [&](int64_t begin, int64_t end, int) {
    std::array<Lane, kImages> lanes;
    int64_t lanes_block = -1;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % in.height, channel = row / in.height % in.channels;
      const int64_t block = row / in.height / in.channels;
      const float* const first = in.pixel(block, y, 0) + channel * in.channel_stride();
      if (block != lanes_block) lanes = lanes_of(in, lanes_block = block);
      for (int64_t i = 0; i < kImages; ++i) {
        const Lane& lane = lanes[i];
        const int64_t count = pixels_in_row(in, lane, y, batch);
        float* const to = out + ((lane.image * in.channels + channel) * height + lane.top + y) * width + lane.left;
        for (int64_t x = 0; x < count; ++x) to[x] = first[x * kImages + i];
      }
    }
  });
}

}  // namespace lpk::engine
