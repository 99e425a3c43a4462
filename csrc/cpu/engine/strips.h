// Where the lanes' pixels lie in an ordinary tensor.
#pragma once

#include "../parallel.h"
#include "lanes.h"
#include "loops.h"

namespace lpk::engine {

// The lanes of a block in a tensor of these strides: [batch][channels][height][width].
class Tensor {
 public:
  Tensor(float* data, int64_t batch, const int64_t* strides, const Activations& blocks)
      : data_(data), batch_(batch), strides_(strides), blocks_(blocks) {}

  void set_block(int64_t block) {
    if (block == block_) return;
    lanes_ = lanes_of(blocks_, block_ = block);
    for (int64_t i = 0; i < kImages; ++i)
      first_[i] = lanes_[i].image * strides_[0] + lanes_[i].top * strides_[2] + lanes_[i].left * strides_[3];
  }

  // Row y of a channel; `rows` of them, where they follow each other.
  void row(Strip* strips, int64_t channel, int64_t y, int64_t rows) const {
    for (int64_t i = 0; i < kImages; ++i) {
      const int64_t width = pixels_in_row(blocks_, lanes_[i], y, batch_);
      const int64_t below = std::min(rows, blocks_.patches.image_height - lanes_[i].top - y);
      strips[i] = at(i, channel * strides_[1] + y * strides_[2], width == 0 ? 0 : width * below);
    }
  }

  // All channels of a pixel.
  void pixel(Strip* strips, int64_t y, int64_t x) const {
    for (int64_t i = 0; i < kImages; ++i) {
      const bool exists = x < pixels_in_row(blocks_, lanes_[i], y, batch_);
      strips[i] = at(i, y * strides_[2] + x * strides_[3], exists ? blocks_.channels : 0);
    }
  }

 private:
  Strip at(int64_t lane, int64_t offset, int64_t count) const {
    return {count == 0 ? data_ : data_ + first_[lane] + offset, count};
  }

  float* data_;
  int64_t batch_;
  const int64_t* strides_;
  Activations blocks_;
  std::array<Lane, kImages> lanes_;
  int64_t first_[kImages];
  int64_t block_ = -1;
};

enum class Innermost { kChannels, kWidth, kNothing };

// What follows each other in a tensor: of two that do, the longer one.
inline Innermost innermost(const Activations& blocks, const int64_t* strides) {
  const bool channels = strides[1] == 1 || blocks.channels == 1;
  const bool width = strides[3] == 1 || blocks.patches.image_width == 1;
  if (channels && (!width || blocks.channels >= blocks.width)) return Innermost::kChannels;
  return width ? Innermost::kWidth : Innermost::kNothing;
}

// How many rows follow each other, in the tensor as in the blocks.
inline int64_t joined_rows(const Activations& blocks, const int64_t* strides) {
  const bool joined =
      blocks.border == 0 && blocks.width == blocks.patches.image_width && strides[2] == blocks.width;
  return joined ? blocks.height : 1;
}

// strip(floats in blocks, their step, the tensor's strips, their number) for all that is in the blocks.
template <class Function>
void for_each_strip(const Activations& blocks, float* data, int64_t batch, const int64_t* strides, Innermost inner,
                    int threads, Function&& strip) {
  const bool pixels = inner == Innermost::kChannels;
  const int64_t rows = pixels ? 1 : joined_rows(blocks, strides);
  const int64_t lines = blocks.height / rows, across = pixels ? blocks.width : blocks.channels;
  parallel_for(blocks.blocks * lines * across, threads, [&](int64_t begin, int64_t end, int) {
    Tensor tensor(data, batch, strides, blocks);
    Strip strips[kImages];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / (lines * across);
      tensor.set_block(block);
      if (pixels) {
        const int64_t y = i / across % lines, x = i % across;
        tensor.pixel(strips, y, x);
        strip(blocks.pixel(block, y, x), blocks.channel_stride(), strips, blocks.channels);
      } else {
        const int64_t channel = i / lines % across, y = i % lines;
        tensor.row(strips, channel, y, rows);
        strip(blocks.pixel(block, y, 0) + channel * blocks.channel_stride(), kImages, strips, rows * blocks.width);
      }
    }
  });
}

}  // namespace lpk::engine
