#include "tiling.h"

namespace lpk::engine {
namespace {

// The positions of a window along one axis that lie in the image.
struct Positions {
  int64_t first;
  int64_t count;
};

Positions inside(int64_t start, int64_t length, int64_t step, int64_t size) {
  const int64_t first = start < 0 ? start + (-start + step - 1) / step * step : start;
  const int64_t end = std::min(start + length * step, size);
  return {first, std::max<int64_t>(0, (end - first + step - 1) / step)};
}

// row(output, region, top, left, pixels) for some neighbouring outputs whose windows have as many pixels in the image; the
// first one's begins in row `top` and column `left`.
template <class Row>
void for_each_window(const Activations& out, const Activations& in, const Window& window, int threads, Row&& row) {
  const int64_t work = out.pixels() * window.height * window.width;
  const int64_t reach = (window.width - 1) * window.dilation_x;
  parallel_for(out.blocks * out.channels * out.height, threads_for(work, threads), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % out.channels, y = i / out.channels % out.height, block = i / out.channels / out.height;
      const int64_t top = y * window.stride_y - window.padding_y;
      const Positions rows = inside(top, window.height, window.dilation_y, in.height);
      const float* from = in.pixel(block, rows.first, 0) + channel * in.channel_stride;
      float* to = out.pixel(block, y, 0) + channel * out.channel_stride;
      for (int64_t x = 0, pixels = 1; x < out.width; x += pixels) {
        const int64_t left = x * window.stride_x - window.padding_x;
        const Positions columns = inside(left, window.width, window.dilation_x, in.width);
        const int64_t whole = (in.width - 1 - reach - left) / window.stride_x + 1;  // windows, from this one on
        pixels = left >= 0 && left + reach < in.width ? std::min(whole, out.width - x) : 1;
        const Region region{from + columns.first * kImages, rows.count, columns.count,
                            window.dilation_y * in.row_stride, window.dilation_x * kImages};
        row(to + x * kImages, region, top, left, pixels);
      }
    }
  });
}

}  // namespace

void max_pool(const Activations& out, const Activations& in, const Window& window, int threads) {
  const auto largest = loops().largest;
  const int64_t step = window.stride_x * kImages;
  for_each_window(out, in, window, threads, [&](float* to, const Region& region, int64_t, int64_t, int64_t pixels) {
    largest(to, region, pixels, step);
  });
}

void average_pool(const Activations& out, const Activations& in, const Window& window, bool count_padding,
                  int threads) {
  const auto average = loops().average;
  const int64_t step = window.stride_x * kImages;
  for_each_window(out, in, window, threads,
                  [&](float* to, const Region& region, int64_t top, int64_t left, int64_t pixels) {
    // As PyTorch does, a window may count padding, but nothing behind it.
    const int64_t height = std::min(window.height, in.height + window.padding_y - top);
    const int64_t width = std::min(window.width, in.width + window.padding_x - left);
    average(to, region, float(count_padding ? height * width : region.height * region.width), pixels, step);
  });
}

}  // namespace lpk::engine
