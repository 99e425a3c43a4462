#include <cstring>

#include "../parallel.h"
#include "rows.h"
#include "work.h"

namespace lpk::engine {

void pick_channels(const Activations& out, const Activations& in, const int64_t* channels, int threads) {
  const Rows rows = rows_of(out, in);
  parallel_for(out.blocks * rows.count * out.channels, threads_for(out.pixels(), threads),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % out.channels, row = i / out.channels % rows.count;
      const int64_t block = i / out.channels / rows.count;
      std::memcpy(out.pixel(block, row, 0) + channel * out.channel_stride,
                  in.pixel(block, row, 0) + channels[channel] * in.channel_stride,
                  rows.pixels * kImages * sizeof(float));
    }
  });
}

}  // namespace lpk::engine
