#include <cstring>

#include "../parallel.h"
#include "engine.h"
#include "work.h"

namespace lpk::engine {

// For each pixel of a patch of out, patch by patch, where it lies in an image's channel of in: floats from the first
// lane of its images' first patch, or less than none outside of the image.
struct Moves {
  std::vector<int32_t> from;
};

namespace {

int32_t offset_of(const Activations& x, int64_t pixel) {
  const int64_t y = pixel / x.patches.image_width, column = pixel % x.patches.image_width;
  const int64_t patch = y / x.height * x.patches.columns + column / x.width;
  return int32_t(y % x.height * x.row_stride + column % x.width * kImages + patch);
}

// Where the images of a block of out have their first pixel in in.
struct Images {
  int64_t count;
  const float* first[kImages];
};

Images images_of(const Activations& in, int64_t first, int64_t count) {
  const int64_t patches = in.patches.count(), together = kImages / patches;
  Images images{count, {}};
  for (int64_t i = 0; i < count; ++i)
    images.first[i] = in.pixel((first + i) / together, 0, 0) + (first + i) % together * patches;
  return images;
}

// `pixels` neighbouring ones of a channel, which begins `channel` floats behind the first in in.
void move(float* line, int64_t pixels, int64_t patches, const Images& images, int64_t channel, const int32_t* from) {
  for (int64_t x = 0; x < pixels; ++x, line += kImages, from += patches)
    for (int64_t image = 0; image < images.count; ++image)
      for (int64_t patch = 0; patch < patches; ++patch)
        if (from[patch] >= 0) line[image * patches + patch] = images.first[image][channel + from[patch]];
}

// The same where neither is cut: all lanes move alike.
void move(float* line, int64_t pixels, const Images& images, int64_t channel, const int32_t* from) {
  for (int64_t x = 0; x < pixels; ++x, line += kImages)
    if (from[x] >= 0) std::memcpy(line, images.first[0] + channel + from[x], kImages * sizeof(float));
}

}  // namespace

std::shared_ptr<const Moves> moves_of(const Activations& out, const Activations& in) {
  Moves moves;
  for (int64_t y = 0; y < out.height; ++y)
    for (int64_t x = 0; x < out.width; ++x)
      for (int64_t patch = 0; patch < out.patches.count(); ++patch) {
        const int64_t row = patch / out.patches.columns * out.height + y;
        const int64_t column = patch % out.patches.columns * out.width + x;
        const bool inside = row < out.patches.image_height && column < out.patches.image_width;
        moves.from.push_back(inside ? offset_of(in, row * out.patches.image_width + column) : -1);
      }
  return std::make_shared<const Moves>(std::move(moves));
}

void relayout(const Activations& out, const Activations& in, const Moves& moves, int64_t first, int64_t images,
              int threads) {
  const int64_t patches = out.patches.count(), together = kImages / patches;
  const bool all_lanes = patches == 1 && in.patches.count() == 1;
  threads = threads_for(out.pixels() * (all_lanes ? 1 : 4), threads);
  // In the order of out: its lines are written once, and those of in lie near each other.
  parallel_for(out.blocks * out.height, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / out.height, y = i % out.height;
      const Images some = images_of(in, first + block * together, std::min(together, images - block * together));
      const int32_t* const from = moves.from.data() + y * out.width * patches;
      for (int64_t k = 0; k < out.channels; ++k) {
        float* const line = out.pixel(block, y, 0) + k * out.channel_stride;
        if (all_lanes)
          move(line, out.width, some, k * in.channel_stride, from);
        else
          move(line, out.width, patches, some, k * in.channel_stride, from);
      }
    }
  });
}

}  // namespace lpk::engine
