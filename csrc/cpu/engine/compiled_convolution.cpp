#include <vector>

#include "compiled.h"
#include "tiling.h"

namespace lpk::engine {
namespace {

// Rows of outputs, or pieces of one, that are computed for some filters before the next: their code and their weights
// come from further away than what is computed.
struct Pieces {
  int64_t rows, columns;
};

Pieces pieces_of(const Activations& out, const Convolution& convolution, const CompiledFilters& filters) {
  constexpr int64_t kLeast = 8, kMost = 64;  // pixels
  constexpr int64_t kNear = 180 << 10;       // bytes, of the inputs of a part
  const int64_t channels = convolution.channels / int64_t(filters.groups()[0].parts.size());
  const int64_t of_output = convolution.stride_y * convolution.stride_x * channels * kImages * kFloat;
  const int64_t pixels = std::clamp(kNear / of_output, kLeast, kMost);
  if (pixels < out.width) {
    const int64_t pieces = (out.width + pixels - 1) / pixels;
    return {1, (out.width + pieces - 1) / pieces};
  }
  return {std::min(pixels / out.width, out.height), out.width};
}

std::vector<int64_t> balanced(const CompiledFilters& filters, int64_t ranges) {
  const auto& groups = filters.groups();
  std::vector<int64_t> borders(ranges + 1, int64_t(groups.size()));
  for (int64_t i = 0; i < ranges; ++i)
    borders[i] = std::lower_bound(groups.begin(), groups.end(), filters.work() * i / ranges,
                                  [](const CompiledGroup& group, int64_t work) { return group.work < work; }) -
                 groups.begin();
  return borders;
}

// A convolution with what is the same for all of its rows.
class RowsOfConvolution {
 public:
  RowsOfConvolution(const Activations& out, const Activations& in, const Convolution& convolution,
                    const Epilogue& epilogue)
      : out_(out),
        in_(in),
        convolution_(convolution),
        residual_(epilogue.residual),
        finish_(finish_of(epilogue, out)),
        ending_(2 * convolution.filters) {
    for (int64_t k = 0; k < convolution.filters; ++k) {
      ending_[2 * k] = finish_.scale == nullptr ? 1.0f : finish_.scale[k];
      ending_[2 * k + 1] = finish_.bias == nullptr ? 0.0f : finish_.bias[k];
    }
  }

  // `width` pixels from (y, x) on, for a part of a group; sums: of these pixels.
  void compute(const CompiledGroup& group, size_t number, int64_t block, int64_t y, int64_t x, int64_t width,
               float* sums) const {
    const CompiledPart& part = group.parts[number];
    const bool last = number + 1 == group.parts.size();
    const bool limited = finish_.high < std::numeric_limits<float>::infinity();
    float* const to = out_.pixel(block, y, x) + group.first * finish_.out_channel;
    CompiledRow row{};
    row.in = in_.pixel(block, y * convolution_.stride_y - convolution_.padding_y,
                       x * convolution_.stride_x - convolution_.padding_x);
    row.out = to;
    if (residual_ != nullptr) row.residual = residual_->pixel(block, y, x) + group.first * finish_.residual_channel;
    row.weights = part.weights;
    row.ending = ending_.data() + 2 * group.first;
    row.sums = sums;
    row.pixels = width;
    row.in_step = convolution_.stride_x * kImages * kFloat;
    row.out_channel = finish_.out_channel * kFloat;
    row.residual_channel = finish_.residual_channel * kFloat;
    row.code = part.code;
    row.finish = last ? endings_.finish(group.count, residual_ != nullptr, limited) : endings_.keep(group.count);
    row.low = finish_.low;
    row.high = finish_.high;
    endings_.start()(&row);
    if (last && finish_.activate != nullptr)
      for (int64_t k = 0; k < group.count; ++k)
        finish_.activate(to + k * finish_.out_channel, width * kImages, finish_.slope);
  }

 private:
  const Activations& out_;
  const Activations& in_;
  const Convolution& convolution_;
  const Activations* residual_;
  const Finish finish_;
  const CompiledEndings& endings_ = CompiledEndings::get();
  std::vector<float> ending_;
};

void compute(const Activations& out, const Activations& in, const Convolution& convolution,
             const CompiledFilters& filters, const Epilogue& epilogue, int threads) {
  const RowsOfConvolution rows(out, in, convolution, epilogue);
  const Pieces pieces = pieces_of(out, convolution, filters);
  const int64_t down = (out.height + pieces.rows - 1) / pieces.rows;
  const int64_t across = (out.width + pieces.columns - 1) / pieces.columns, tiles = out.blocks * down * across;
  threads = threads_for(filters.nonzeros() * out.rows() * out.width / 4, threads);
  const int64_t ranges = filter_ranges(tiles, int64_t(filters.groups().size()), threads);
  const std::vector<int64_t> borders = balanced(filters, ranges);
  parallel_for(tiles * ranges, threads, [&](int64_t begin, int64_t end, int) {
    const Sums sums(pieces.rows * pieces.columns * kCompiledSums);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / ranges, block = tile / (down * across), row = tile / across % down;
      const int64_t top = part(out.height, int(down), int(row)), bottom = part(out.height, int(down), int(row) + 1);
      const int64_t left = part(out.width, int(across), int(tile % across));
      const int64_t width = part(out.width, int(across), int(tile % across) + 1) - left;
      for (int64_t g = borders[i % ranges]; g < borders[i % ranges + 1]; ++g) {
        const CompiledGroup& group = filters.groups()[g];
        for (size_t number = 0; number < group.parts.size(); ++number)
          for (int64_t y = top; y < bottom; ++y)
            rows.compute(group, number, block, y, left, width,
                         sums.data() + (y - top) * width * kCompiledSums * kImages);
      }
    }
  });
}

}  // namespace

void compiled_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                          const CompiledFilters& filters, const Epilogue& epilogue, int threads) {
  with_rows_joined(out, in, convolution, epilogue, [&](const Activations& to, const Activations& from,
                                                       const Epilogue& ending) {
    compute(to, from, convolution, filters, ending, threads);
  });
}

}  // namespace lpk::engine
