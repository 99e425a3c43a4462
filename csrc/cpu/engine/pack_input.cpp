#include "strips.h"

namespace lpk::engine {
namespace {

// A number at a time, whatever the strides.
void pack_numbers(const Activations& out, const float* in, int64_t batch, const int64_t* strides, int threads) {
  parallel_for(out.blocks * out.channels * out.height, threads_for(out.pixels(), threads), [&](int64_t begin, int64_t end, int) {
    std::array<Lane, kImages> lanes;
    int64_t lanes_block = -1;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % out.height, channel = row / out.height % out.channels;
      const int64_t block = row / out.height / out.channels;
      float* const first = out.pixel(block, y, 0) + channel * out.channel_stride;
      if (block != lanes_block) lanes = lanes_of(out, lanes_block = block);
      for (int64_t i = 0; i < kImages; ++i) {
        const Lane& lane = lanes[i];
        const int64_t count = pixels_in_row(out, lane, y, batch);
        const float* const from = in + lane.image * strides[0] + channel * strides[1] + (lane.top + y) * strides[2] +
                                  lane.left * strides[3];
        float* const to = first + i;
        for (int64_t x = 0; x < count; ++x) to[x * kImages] = from[x * strides[3]];
        for (int64_t x = count; x < out.width; ++x) to[x * kImages] = 0.0f;
      }
    }
  });
}

}  // namespace

void pack_input(const Activations& out, const float* in, int64_t batch, const int64_t* strides, int threads) {
  constexpr int64_t kFew = 8;  // channels, of which a square would be filled too little
  const Innermost inner = innermost(out, strides);
  if (inner == Innermost::kNothing || (inner == Innermost::kChannels && out.channels < kFew))
    return pack_numbers(out, in, batch, strides, threads);
  const auto gather = loops().gather;
  for_each_strip(out, const_cast<float*>(in), batch, strides, inner, threads,
                 [&](float* to, int64_t step, const Strips& strips, int64_t n) { gather(to, step, strips, n); });
}

}  // namespace lpk::engine
