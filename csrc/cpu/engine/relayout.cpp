#include <cstring>

#include "../parallel.h"
#include "engine.h"
#include "work.h"

namespace lpk::engine {
namespace {

// Of pixel number i of an image: floats from lane 0 of the first pixel of its first patch.
int64_t offset_of(const Activations& x, int64_t i) {
  const int64_t y = i / x.patches.image_width, column = i % x.patches.image_width;
  const int64_t patch = y / x.height * x.patches.columns + column / x.width;
  return y % x.height * x.row_stride + column % x.width * kImages + patch;
}

// The first lane of an image, in the interior of a channel.
float* first_of(const Activations& x, int64_t image, int64_t channel) {
  const int64_t images = kImages / x.patches.count();  // in a block
  return x.pixel(image / images, 0, 0) + channel * x.channel_stride + image % images * x.patches.count();
}

}  // namespace

// In the order of out: a patch's pixel after the other, and the patches that have it.
std::shared_ptr<const std::vector<Move>> moves_of(const Activations& out, const Activations& in) {
  std::vector<Move> moves;
  for (int64_t i = 0; i < in.patches.image_height * in.patches.image_width; ++i)
    moves.push_back({int32_t(offset_of(out, i)), int32_t(offset_of(in, i))});
  std::sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) { return a.to < b.to; });
  return std::make_shared<const std::vector<Move>>(std::move(moves));
}

void relayout(const Activations& out, const Activations& in, const std::vector<Move>& moves, int64_t first,
              int64_t last, int threads) {
  const bool whole = in.patches.count() == 1 && out.patches.count() == 1;  // all lanes move alike
  const int64_t step = whole ? kImages : 1, count = (last - first + step - 1) / step;
  const int64_t numbers = count * out.channels * int64_t(moves.size());
  parallel_for(count * out.channels, threads_for(whole ? numbers : numbers / 4, threads),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = first + i / out.channels * step, channel = i % out.channels;
      float* const to = first_of(out, image, channel);
      const float* const from = first_of(in, image, channel);
      if (whole)
        for (const Move& move : moves) std::memcpy(to + move.to, from + move.from, kImages * sizeof(float));
      else
        for (const Move& move : moves) to[move.to] = from[move.from];
    }
  });
}

}  // namespace lpk::engine
