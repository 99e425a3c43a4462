// Where the lanes' pixels lie in an ordinary tensor [batch][channels][height][width] of any strides.
#pragma once

#include "../parallel.h"
#include "lanes.h"
#include "loops.h"
#include "rows.h"
#include "work.h"

namespace lpk::engine {

class Tensor {
 public:
  Tensor(float* data, int64_t batch, const int64_t* strides, const Activations& blocks)
      : data_(data), batch_(batch), strides_(strides), blocks_(blocks) {}

  void set_block(int64_t block) {
    if (block == block_) return;
    const std::array<Lane, kImages> lanes = lanes_of(blocks_, block_ = block);
    for (int64_t i = 0; i < kImages; ++i) {
      const Lane& lane = lanes[i];
      width_[i] = int32_t(pixels_in_row(blocks_, lane, 0, batch_));
      height_[i] = width_[i] == 0 ? 0 : int32_t(std::min(blocks_.height, blocks_.patches.image_height - lane.top));
      const bool exists = height_[i] > 0;
      strips_.offset[i] =
          exists ? lane.image * strides_[0] + lane.top * strides_[2] + lane.left * strides_[3] : 0;
    }
  }

  // Row y of a channel; `rows` of them, where they follow each other.
  const Strips& row(int64_t channel, int64_t y, int64_t rows) {
    strips_.data = data_ + channel * strides_[1] + y * strides_[2];
    for (int64_t i = 0; i < kImages; ++i)
      strips_.count[i] = std::clamp(height_[i] - int32_t(y), 0, int32_t(rows)) * width_[i];
    return strips_;
  }

  // All channels of a pixel.
  const Strips& pixel(int64_t y, int64_t x) {
    strips_.data = data_ + y * strides_[2] + x * strides_[3];
    for (int64_t i = 0; i < kImages; ++i)
      strips_.count[i] = y < height_[i] && x < width_[i] ? int32_t(blocks_.channels) : 0;
    return strips_;
  }

 private:
  float* data_;
  int64_t batch_;
  const int64_t* strides_;
  const Activations& blocks_;
  int64_t block_ = -1;
  int32_t height_[kImages], width_[kImages];  // how much of each lane's patch there is
  Strips strips_;
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
      rows_follow(blocks) && blocks.width == blocks.patches.image_width && strides[2] == blocks.width;
  return joined ? blocks.height : 1;
}

// strip(floats in blocks, their step, the tensor's strips, their number) for all that is in the blocks.
template <class Function>
void for_each_strip(const Activations& blocks, float* data, int64_t batch, const int64_t* strides, Innermost inner,
                    int threads, Function&& strip) {
  const bool pixels = inner == Innermost::kChannels;
  const int64_t rows = pixels ? 1 : joined_rows(blocks, strides);
  const int64_t lines = blocks.height / rows, across = pixels ? blocks.width : blocks.channels;
  parallel_for(blocks.blocks * lines * across, threads_for(blocks.pixels(), threads), [&](int64_t begin, int64_t end, int) {
    Tensor tensor(data, batch, strides, blocks);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / (lines * across);
      tensor.set_block(block);
      if (pixels) {
        const int64_t y = i / across % lines, x = i % across;
        strip(blocks.pixel(block, y, x), blocks.channel_stride, tensor.pixel(y, x), blocks.channels);
      } else {
        const int64_t channel = i / lines % across, y = i % lines;
        strip(blocks.pixel(block, y, 0) + channel * blocks.channel_stride, kImages, tensor.row(channel, y, rows),
              rows * blocks.width);
      }
    }
  });
}

}  // namespace lpk::engine
