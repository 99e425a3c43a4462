#include <array>
#include <cstring>

#include "../parallel.h"
#include "loops.h"
#include "work.h"

namespace lpk::engine {

// For each pixel of a patch of out, patch by patch, where it lies in an image's channel of in: floats from the first
// lane of its images' first patch, or less than none outside of the image.
struct Moves {
  std::vector<int32_t> from;
  // The same by pixels of in, for a whole block of out, if that has as many images as one of in or more.
  std::vector<LaneSource> sources;
  std::vector<int32_t> start;  // of each pixel's sources; empty: there are fewer images
  std::vector<std::array<int32_t, kImages>> lanes;
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

// The sources of the next pixel of out, whose patches come from `from`.
void add_sources(Moves& moves, const Activations& out, const Activations& in, const int32_t* from) {
  const int64_t patches = out.patches.count(), together = kImages / in.patches.count();
  std::vector<LaneSource> sources;
  std::vector<std::array<int32_t, kImages>> lanes;
  for (int64_t lane = 0; lane < kImages; ++lane) {
    const int64_t image = lane / patches, offset = from[lane % patches];
    if (offset < 0) continue;
    const LaneSource source{int32_t(image / together), int32_t(offset / kImages * kImages), 0};
    size_t i = 0;
    while (i < sources.size() && (sources[i].block != source.block || sources[i].offset != source.offset)) ++i;
    if (i == sources.size()) {
      sources.push_back(source);
      lanes.emplace_back().fill(-1);
    }
    lanes[i][lane] = int32_t(image % together * in.patches.count() + offset % kImages);
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto known = std::find(moves.lanes.begin(), moves.lanes.end(), lanes[i]);
    sources[i].lanes = int32_t(known - moves.lanes.begin());
    if (known == moves.lanes.end()) moves.lanes.push_back(lanes[i]);
    moves.sources.push_back(sources[i]);
  }
  moves.start.push_back(int32_t(moves.sources.size()));
}

}  // namespace

std::shared_ptr<const Moves> moves_of(const Activations& out, const Activations& in, int64_t stride_y,
                                      int64_t stride_x) {
  Moves moves;
  for (int64_t y = 0; y < out.height; ++y)
    for (int64_t x = 0; x < out.width; ++x)
      for (int64_t patch = 0; patch < out.patches.count(); ++patch) {
        const int64_t row = patch / out.patches.columns * out.height + y;
        const int64_t column = patch % out.patches.columns * out.width + x;
        const bool inside = row < out.patches.image_height && column < out.patches.image_width;
        const int64_t number = row * out.patches.image_width + column;
        const bool as_it_is = stride_y == 1 && stride_x == 1;
        const int64_t pixel = as_it_is ? number : row * stride_y * in.patches.image_width + column * stride_x;
        moves.from.push_back(inside ? offset_of(in, pixel) : -1);
      }
  if (out.patches.count() <= in.patches.count()) {
    moves.start.push_back(0);
    for (size_t i = 0; i < moves.from.size(); i += out.patches.count())
      add_sources(moves, out, in, moves.from.data() + i);
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
      const int64_t image = first + block * together;
      const Images some = images_of(in, image, std::min(together, images - block * together));
      const bool whole = some.count == together && !moves.start.empty();
      const int32_t* const from = moves.from.data() + y * out.width * patches;
      const float* blocks[kImages];  // of in
      for (int64_t b = 0; whole && b < together * in.patches.count() / kImages; ++b)
        blocks[b] = in.pixel(image * in.patches.count() / kImages + b, 0, 0);
      const LanesTask task{blocks, moves.sources.data(), moves.start.data() + (whole ? y * out.width : 0),
                           whole ? moves.lanes.data()->data() : nullptr};
      for (int64_t k = 0; k < out.channels; ++k) {
        float* const line = out.pixel(block, y, 0) + k * out.channel_stride;
        if (all_lanes)
          move(line, out.width, some, k * in.channel_stride, from);
        else if (whole)
          loops().take_lanes(task, line, out.width, k * in.channel_stride);
        else
          move(line, out.width, patches, some, k * in.channel_stride, from);
      }
    }
  });
}

}  // namespace lpk::engine
