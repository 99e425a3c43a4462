#include <vector>

#include "tiling.h"

namespace lpk::engine {
namespace {

// The positions of a window along one axis that lie in the image: first, first + step, ... below last.
struct Positions {
  int64_t first;
  int64_t last;
};

Positions inside(int64_t start, int64_t length, int64_t step, int64_t size) {
  const int64_t skipped = start < 0 ? (-start + step - 1) / step : 0;
  return {start + skipped * step, std::min(start + length * step, size)};
}

template <class Body>
void for_each_row(const Activations& out, int threads, Body&& body) {
  parallel_for(out.blocks * out.channels * out.height, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      body(i / out.height / out.channels, i / out.height % out.channels, i % out.height);
  });
}

// out[x] = reduced(first pixel, last pixel, ...) over the windows of one row of outputs.
template <class Pixel>
void pool(const Activations& out, const Activations& in, const Window& window, int threads, Pixel&& pixel) {
  for_each_row(out, threads, [&](int64_t block, int64_t channel, int64_t y) {
    const int64_t top = y * window.stride_y - window.padding_y;
    const Positions rows = inside(top, window.height, window.dilation_y, in.height);
    const float* from = in.pixel(block, 0, 0) + channel * in.channel_stride();
    float* to = out.pixel(block, y, 0) + channel * out.channel_stride();
    for (int64_t x = 0; x < out.width; ++x, to += kImages) {
      const int64_t left = x * window.stride_x - window.padding_x;
      pixel(to, from, top, left, rows, inside(left, window.width, window.dilation_x, in.width));
    }
  });
}

}  // namespace

void max_pool(const Activations& out, const Activations& in, const Window& window, int threads) {
  pool(out, in, window, threads,
       [&](float* to, const float* from, int64_t, int64_t, const Positions& rows, const Positions& columns) {
         alignas(64) float largest[kImages];
         for (int64_t i = 0; i < kImages; ++i) largest[i] = -std::numeric_limits<float>::infinity();
         for (int64_t y = rows.first; y < rows.last; y += window.dilation_y)
           for (int64_t x = columns.first; x < columns.last; x += window.dilation_x) {
             const float* value = from + y * in.row_stride() + x * kImages;
             for (int64_t i = 0; i < kImages; ++i)  // NaN, which is not less, stays
               largest[i] = !(value[i] <= largest[i]) && largest[i] == largest[i] ? value[i] : largest[i];
           }
         for (int64_t i = 0; i < kImages; ++i) to[i] = largest[i];
       });
}

void average_pool(const Activations& out, const Activations& in, const Window& window, bool count_padding,
                  int threads) {
  pool(out, in, window, threads,
       [&](float* to, const float* from, int64_t top, int64_t left, const Positions& rows, const Positions& columns) {
         const int64_t height = std::min(window.height, in.height + window.padding_y - top);
         const int64_t width = std::min(window.width, in.width + window.padding_x - left);
         const int64_t count = count_padding ? height * width
                                             : (rows.last - rows.first) * (columns.last - columns.first);
         alignas(64) float sums[kImages] = {};
         for (int64_t y = rows.first; y < rows.last; ++y)
           for (int64_t x = columns.first; x < columns.last; ++x) {
             const float* value = from + y * in.row_stride() + x * kImages;
             for (int64_t i = 0; i < kImages; ++i) sums[i] += value[i];
           }
         for (int64_t i = 0; i < kImages; ++i) to[i] = sums[i] / float(count);
       });
}

void global_average_pool(const Activations& out, const Activations& in, int threads) {
  const float pixels = float(in.height * in.width);
  parallel_for(in.blocks * in.channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / in.channels, channel = i % in.channels;
      alignas(64) float sums[kImages] = {}, row[kImages];
      for (int64_t y = 0; y < in.height; ++y) {
        loops().row_sums(row, in.pixel(block, y, 0) + channel * in.channel_stride(), in.width, 0.0f, false);
        for (int64_t image = 0; image < kImages; ++image) sums[image] += row[image];
      }
      float* to = out.pixel(block, 0, 0) + channel * out.channel_stride();
      for (int64_t image = 0; image < kImages; ++image) to[image] = sums[image] / pixels;
    }
  });
}

}  // namespace lpk::engine
