#include <cstring>
#include <vector>

#include "tiling.h"

namespace lpk::engine {
namespace {

// The weights of a filter that lie in a block of the input channels.
struct Range {
  int64_t first;
  int64_t last;
};

// The blocks are those of all input channels; a filter has weights for its group's.
Range weights_in_block(const Convolution& convolution, int64_t filter, int64_t block, int64_t channels_per_block) {
  const int64_t group = filter / convolution.group_filters(), channels = convolution.group_channels();
  const int64_t first = block * channels_per_block - group * channels;
  return {std::clamp<int64_t>(first, 0, channels) * convolution.window(),
          std::clamp<int64_t>(first + channels_per_block, 0, channels) * convolution.window()};
}

constexpr int64_t kTogether = 16;  // weights: where most are zero, many such groups are, and are skipped

bool all_zero(const float* weights) {
  uint32_t bits[kTogether], any = 0;
  std::memcpy(bits, weights, sizeof bits);
  for (uint32_t b : bits) any |= b & 0x7fffffff;
  return any == 0;
}

int64_t blocks_of(const Convolution& convolution, int64_t channels_per_block) {
  return (convolution.channels + channels_per_block - 1) / channels_per_block;
}

}  // namespace

void count_filters(int64_t* start, const float* weights, const Convolution& convolution, int64_t channels_per_block,
                   int threads) {
  const int64_t blocks = blocks_of(convolution, channels_per_block), filters = convolution.filters;
  parallel_for(filters, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; ++k) {
      const float* filter = weights + k * convolution.weights();
      for (int64_t block = 0; block < blocks; ++block) {
        const Range range = weights_in_block(convolution, k, block, channels_per_block);
        int32_t count = 0;
        for (int64_t i = range.first; i < range.last; ++i) count += filter[i] != 0.0f;
        start[block * filters + k + 1] = count;
      }
    }
  });
  start[0] = 0;
  for (int64_t i = 0; i < blocks * filters; ++i) start[i + 1] += start[i];
}

void pack_filters(NonZero* entries, const int64_t* start, const float* weights, const Convolution& convolution,
                  const Activations& in, int64_t channels_per_block, int64_t gathered, int threads) {
  const int64_t blocks = blocks_of(convolution, channels_per_block), filters = convolution.filters;
  std::vector<int32_t> offsets(convolution.weights());
  for (int64_t i = 0; i < convolution.weights(); ++i)
    offsets[i] = int32_t(gathered > 0 ? i * gathered * kImages : weight_offset(convolution, in, i));
  parallel_for(filters, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; ++k) {
      const float* filter = weights + k * convolution.weights();
      const int64_t group = k / convolution.group_filters();
      const int32_t group_offset = int32_t(group * convolution.group_channels() * in.channel_stride);
      for (int64_t block = 0; block < blocks; ++block) {
        const Range range = weights_in_block(convolution, k, block, channels_per_block);
        NonZero* entry = entries + start[block * filters + k];
        NonZero* const last = entries + start[block * filters + k + 1];
        for (int64_t i = range.first; entry != last; i += kTogether) {
          const int64_t end = std::min(i + kTogether, range.last);
          if (end - i == kTogether && all_zero(filter + i)) continue;
          for (int64_t j = i; j < end && entry != last; ++j) {
            *entry = {filter[j], group_offset + offsets[j]};  // overwritten where the weight is zero
            entry += filter[j] != 0.0f;
          }
        }
      }
    }
  });
}

int64_t dense_filters_size(const Convolution& convolution) {
  const int64_t fours = (convolution.group_filters() + kFour - 1) / kFour;
  return convolution.groups * fours * convolution.weights() * kFour;
}

void pack_dense_filters(float* packed, int32_t* offsets, const float* weights, const Convolution& convolution,
                        const Activations& in, int threads) {
  const int64_t fours = (convolution.group_filters() + kFour - 1) / kFour, size = convolution.weights();
  for (int64_t i = 0; i < size; ++i) offsets[i] = int32_t(weight_offset(convolution, in, i));
  parallel_for(convolution.groups * fours, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t four = begin; four < end; ++four) {
      for (int64_t j = 0; j < kFour; ++j) {
        const int64_t in_group = four % fours * kFour + j;
        const int64_t k = four / fours * convolution.group_filters() + in_group;
        const bool exists = in_group < convolution.group_filters();
        float* const to = packed + four * size * kFour + j;
        for (int64_t i = 0; i < size; ++i) to[i * kFour] = exists ? weights[k * size + i] : 0.0f;
      }
    }
  });
}

}  // namespace lpk::engine
