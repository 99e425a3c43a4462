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
  return int32_t(y % x.height * x.row_stride() + column % x.width * kImages + patch);
}

// The images of a block of out, of a channel.
struct Images {
  int64_t count;
  const float* first[kImages];  // their first pixel in in
};

Images images_of(const Activations& in, int64_t channel, int64_t first, int64_t count) {
  const int64_t patches = in.patches.count(), together = kImages / patches;
  Images images{count, {}};
  for (int64_t i = 0; i < count; ++i)
    images.first[i] = in.pixel((first + i) / together, 0, 0) + channel * in.channel_stride() +
                      (first + i) % together * patches;
  return images;
}

// One channel of a block. In the order of out: its lines are written once, and those of in lie near each other.
void move(const Activations& out, float* to, const Images& images, const int32_t* from, bool all_lanes) {
  const int64_t patches = out.patches.count();
  for (int64_t y = 0; y < out.height; ++y) {
    float* line = to + y * out.row_stride();
    for (int64_t x = 0; x < out.width; ++x, line += kImages, from += patches) {
      if (all_lanes) {
        if (*from >= 0) std::memcpy(line, images.first[0] + *from, kImages * sizeof(float));
        continue;
      }
      for (int64_t image = 0; image < images.count; ++image)
        for (int64_t patch = 0; patch < patches; ++patch)
          if (from[patch] >= 0) line[image * patches + patch] = images.first[image][from[patch]];
    }
  }
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
  const int64_t together = kImages / out.patches.count();
  const bool all_lanes = out.patches.count() == 1 && in.patches.count() == 1;  // which move alike
  threads = threads_for(out.pixels() * (all_lanes ? 1 : 4), threads);
  parallel_for(out.blocks * out.channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / out.channels, channel = i % out.channels;
      const int64_t count = std::min(together, images - block * together);
      const Images some = images_of(in, channel, first + block * together, count);
      move(out, out.pixel(block, 0, 0) + channel * out.channel_stride(), some, moves.from.data(), all_lanes);
    }
  });
}

}  // namespace lpk::engine
