#include "../parallel.h"
#include "lanes.h"
#include "loops.h"
#include "work.h"

namespace lpk::engine {
namespace {

// How many rows and columns of each lane's patch lie in its image.
struct Extents {
  alignas(64) int32_t height[kImages], width[kImages];

  explicit Extents(const Activations& x) {
    const std::array<Lane, kImages> lanes = lanes_of(x, 0);
    for (int64_t i = 0; i < kImages; ++i) {
      height[i] = int32_t(std::clamp<int64_t>(x.patches.image_height - lanes[i].top, 0, x.height));
      width[i] = int32_t(std::clamp<int64_t>(x.patches.image_width - lanes[i].left, 0, x.width));
    }
  }
};

}  // namespace

void global_average_pool(const Activations& out, const Activations& in, int64_t first, int threads) {
  const Extents extents(in);
  const int64_t patches = in.patches.count(), images = kImages / patches;  // in a block of in
  const float pixels = float(in.patches.image_height * in.patches.image_width);
  const auto sum = loops().sum;
  parallel_for(out.blocks * out.channels, threads_for(in.pixels(), threads), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / out.channels, channel = i % out.channels;
      alignas(64) float sums[kImages];
      float total[kImages] = {};
      for (int64_t part = 0; part < patches; ++part) {
        const int64_t from = (first + block) * patches + part;
        if (from >= in.blocks) break;
        sum(sums, {in.pixel(from, 0, 0) + channel * in.channel_stride, in.height, in.width, in.row_stride, kImages},
            extents.height, extents.width);
        for (int64_t lane = 0; lane < kImages; ++lane) total[part * images + lane / patches] += sums[lane];
      }
      float* const to = out.pixel(block, 0, 0) + channel * out.channel_stride;
      for (int64_t lane = 0; lane < kImages; ++lane) to[lane] = total[lane] / pixels;
    }
  });
}

}  // namespace lpk::engine
