// What the lanes of a block hold: which patch of which image.
#pragma once

#include <algorithm>
#include <array>

#include "engine.h"

namespace lpk::engine {

struct Lane {
  int64_t image;      // counted over all blocks
  int64_t top, left;  // of the patch in its image
};

inline std::array<Lane, kImages> lanes_of(const Activations& x, int64_t block) {
  std::array<Lane, kImages> lanes;
  const int64_t patches = x.patches.count();
  for (int64_t i = 0; i < kImages; ++i) {
    const int64_t patch = i % patches;
    lanes[i] = {block * (kImages / patches) + i / patches, patch / x.patches.columns * x.height,
                patch % x.patches.columns * x.width};
  }
  return lanes;
}

// How many pixels of row y of a lane's patch lie in an image that is below `batch`.
inline int64_t pixels_in_row(const Activations& x, const Lane& lane, int64_t y, int64_t batch) {
  if (lane.image >= batch || lane.top + y >= x.patches.image_height) return 0;
  return std::clamp<int64_t>(x.patches.image_width - lane.left, 0, x.width);
}

}  // namespace lpk::engine
