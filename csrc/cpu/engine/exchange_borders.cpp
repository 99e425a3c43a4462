#include <vector>

#include "../parallel.h"
#include "lanes.h"
#include "loops.h"
#include "work.h"

namespace lpk::engine {
namespace {

// Where the lanes' neighbours keep the pixel (row, column) of a patch, which may lie in the border. All patches being
// alike, it is the same pixel of every neighbour.
Exchange exchange_of(const Activations& x, const std::array<Lane, kImages>& lanes, int64_t row, int64_t column) {
  const auto floor_divide = [](int64_t a, int64_t b) { return (a >= 0 ? a : a - b + 1) / b; };
  const auto offset = [&](int64_t y, int64_t x_) { return (y + x.border) * x.row_stride + (x_ + x.border) * kImages; };
  const int64_t down = floor_divide(row, x.height), right = floor_divide(column, x.width);
  Exchange exchange{offset(row, column), offset(row - down * x.height, column - right * x.width), 1, 1, {}};
  for (int64_t i = 0; i < kImages; ++i) {
    const int64_t y = lanes[i].top + row, x_ = lanes[i].left + column;
    const bool inside = y >= 0 && y < x.patches.image_height && x_ >= 0 && x_ < x.patches.image_width;
    exchange.lane[i] = inside ? int32_t(i + down * x.patches.columns + right) : -1;
  }
  return exchange;
}

bool same_lanes(const Exchange& a, const Exchange& b) { return std::equal(a.lane, a.lane + kImages, b.lane); }

// Exchanges that lie side by side in rows, then rows of them below each other, become one.
void join(std::vector<Exchange>& exchanges, int64_t row_stride) {
  std::vector<Exchange> joined;
  for (const Exchange& e : exchanges) {
    Exchange* const last = joined.empty() ? nullptr : &joined.back();
    const int64_t width = last == nullptr ? 0 : last->width * kImages;
    if (last != nullptr && e.to == last->to + width && e.from == last->from + width && same_lanes(e, *last))
      ++last->width;
    else
      joined.push_back(e);
  }
  exchanges.clear();
  for (const Exchange& e : joined) {
    const auto above = std::find_if(exchanges.begin(), exchanges.end(), [&](const Exchange& a) {
      const int64_t height = a.height * row_stride;
      return e.to == a.to + height && e.from == a.from + height && e.width == a.width && same_lanes(e, a);
    });
    if (above != exchanges.end())
      ++above->height;
    else
      exchanges.push_back(e);
  }
}

}  // namespace

std::shared_ptr<const std::vector<Exchange>> exchanges_of(const Activations& x) {
  // From here on a patch may reach beyond the image.
  const int64_t last_row = x.patches.image_height - (x.patches.rows - 1) * x.height;
  const int64_t last_column = x.patches.image_width - (x.patches.columns - 1) * x.width;
  const std::array<Lane, kImages> lanes = lanes_of(x, 0);
  std::vector<Exchange> exchanges;
  for (int64_t row = -x.border; row < x.height + x.border; ++row)
    for (int64_t column = -x.border; column < x.width + x.border; ++column)
      if (row < 0 || row >= std::min(x.height, last_row) || column < 0 || column >= std::min(x.width, last_column))
        exchanges.push_back(exchange_of(x, lanes, row, column));
  join(exchanges, x.row_stride);
  return std::make_shared<const std::vector<Exchange>>(std::move(exchanges));
}

void exchange_borders(const Activations& x, const std::vector<Exchange>& exchanges, float outside, int threads) {
  const auto exchange = loops().exchange;
  int64_t pixels = 0;
  for (const Exchange& e : exchanges) pixels += e.height * e.width;
  threads = threads_for(pixels * x.blocks * x.channels, threads);
  parallel_for(x.blocks * x.channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      exchange(x.data + i / x.channels * x.block_stride + i % x.channels * x.channel_stride, x.row_stride,
               exchanges.data(), int64_t(exchanges.size()), outside);
  });
}

}  // namespace lpk::engine
