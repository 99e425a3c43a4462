#include "tiling.h"

namespace lpk::engine {
namespace {

// The sum of in - centre, or of its square, over the images below `batch` and all pixels of a channel: each row in
// float32, the rows in float64.
double sum_of(const Loops& loops, const Activations& in, int64_t channel, int64_t batch, float centre, bool squared) {
  double total = 0.0;
  for (int64_t block = 0; block < in.blocks; ++block) {
    const int64_t images = std::min(kImages, batch - block * kImages);
    for (int64_t y = 0; y < in.height; ++y) {
      alignas(64) float sums[kImages];
      loops.row_sums(sums, in.pixel(block, y, 0) + channel * in.channel_stride, in.width, centre, squared);
      for (int64_t i = 0; i < images; ++i) total += double(sums[i]);
    }
  }
  return total;
}

}  // namespace

void channel_statistics(double* mean, double* variance, const Activations& in, int64_t batch, int threads) {
  const Loops& loop_table = loops();
  const double count = double(batch * in.height * in.width);
  parallel_for(in.channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t channel = begin; channel < end; ++channel) {
      // The second pass is about the mean that the first one found, so that no two large numbers are subtracted.
      const float centre = float(sum_of(loop_table, in, channel, batch, 0.0f, false) / count);
      const double rest = sum_of(loop_table, in, channel, batch, centre, false);
      mean[channel] = double(centre) + rest / count;
      variance[channel] = (sum_of(loop_table, in, channel, batch, centre, true) - rest * rest / count) / (count - 1);
    }
  });
}

}  // namespace lpk::engine
