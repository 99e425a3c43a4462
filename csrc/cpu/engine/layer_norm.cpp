#include "../parallel.h"
#include "loops.h"
#include "rows.h"
#include "work.h"

namespace lpk::engine {

void layer_norm(const Activations& out, const Activations& in, const LayerNorm& norm, int threads) {
  constexpr int64_t kPixels = 8;  // at a time
  const LayerNormTask task{norm, in.channels, in.channel_stride, out.channel_stride};
  const Rows rows = rows_of(in, out);
  const int64_t pieces = (rows.pixels + kPixels - 1) / kPixels;
  const auto normalise = loops().layer_norm;
  parallel_for(in.blocks * rows.count * pieces, threads_for(in.pixels(), threads), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x = i % pieces * kPixels, row = i / pieces % rows.count, block = i / pieces / rows.count;
      normalise(task, out.pixel(block, row, x), in.pixel(block, row, x), std::min(kPixels, rows.pixels - x));
    }
  });
}

}  // namespace lpk::engine
