#include "lanes.h"
#include "tiling.h"

namespace lpk::engine {
namespace {

int64_t rounded_up(int64_t n) { return (n + kMostKeys - 1) / kMostKeys * kMostKeys; }

// The keys in chunks of about the same size.
int64_t best_chunk(int64_t tokens) {
  constexpr int64_t kMost = 256;
  const int64_t chunks = (tokens + kMost - 1) / kMost;
  return rounded_up((tokens + chunks - 1) / chunks);
}

// Number 0 of a head, in the first pixel.
float* head_of(const Activations& x, const Heads& heads, int64_t block, int64_t head) {
  return x.pixel(block, 0, 0) + (heads.first + head * heads.head) * x.channel_stride;
}

}  // namespace

std::vector<int32_t> tokens_of(const Activations& x) {
  const std::array<Lane, kImages> lanes = lanes_of(x, 0);
  std::vector<int32_t> tokens;
  for (int64_t row = 0; row < x.height; ++row)
    for (int64_t column = 0; column < x.width; ++column)
      for (int64_t lane = 0; lane < kImages; ++lane)
        if (column < pixels_in_row(x, lanes[lane], row, 1))
          tokens.push_back(int32_t(row * x.row_stride + column * kImages + lane));
  return tokens;
}

void attention(const Activations& out, const Activations& query, const Activations& key, const Activations& value,
               const Attention& attention, const Tokens& tokens, int threads) {
  const int64_t count = int64_t(tokens.key.size()), pixels = out.height * out.width;
  const int64_t groups = (pixels + kQueries - 1) / kQueries;
  const AttentionTask task{attention.size,
                           attention.scale,
                           count,
                           best_chunk(count),
                           tokens.key.data(),
                           tokens.value.data(),
                           attention.query.step * query.channel_stride,
                           attention.key.step * key.channel_stride,
                           attention.value.step * value.channel_stride,
                           out.channel_stride};
  const Heads channels{0, attention.size, 1};  // of out
  const auto attend = loops().attend;
  threads = threads_for(out.pixels() * count / 2, threads);
  parallel_for(out.blocks * attention.heads * groups, threads, [&](int64_t begin, int64_t end, int) {
    const Sums memory((2 * rounded_up(task.size) + task.chunk) * kQueries);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i % groups, head = i / groups % attention.heads, block = i / groups / attention.heads;
      AttentionTile tile{};
      tile.key = head_of(key, attention.key, block, head);
      tile.value = head_of(value, attention.value, block, head);
      const int64_t last = part(pixels, int(groups), int(group) + 1);
      for (int64_t pixel = part(pixels, int(groups), int(group)); pixel < last; ++pixel, ++tile.count) {
        const int64_t y = pixel / out.width, x = pixel % out.width;
        tile.query[tile.count] = head_of(query, attention.query, block, head) + y * query.row_stride + x * kImages;
        tile.out[tile.count] = head_of(out, channels, block, head) + y * out.row_stride + x * kImages;
      }
      attend(task, tile, memory.data());
    }
  });
}

}  // namespace lpk::engine
