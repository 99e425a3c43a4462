#include <cstddef>
#include <stdexcept>

#include "../operations.h"
#include "assembler.h"
#include "compiled.h"
#include "tiling.h"

namespace lpk::engine {
namespace {

constexpr int kSums = int(kCompiledSums), kLow = 30, kOther = 31;  // vector registers
constexpr int64_t kPixel = kImages * kFloat;  // bytes
constexpr int64_t kReach = 128;  // weights on either side of the pointer to them, which short offsets reach
// How many there are in a part. The code of those of windows stays in the first-level cache, and so do their inputs,
// which the windows of neighbouring pixels share.
constexpr int64_t kProducts = 6000, kProductsOfWindows = 1500;
constexpr Register kIn = Register::rdi, kWeights = Register::rsi, kOut = Register::rdx, kOutChannel = Register::rcx,
                   kResidual = Register::r8, kResidualChannel = Register::r9, kRow = Register::r10,
                   kOutOfFilter = Register::rax, kSumsOfPixel = Register::rax, kResidualOfFilter = Register::r11;

#define LPK_ROW(member) \
  Address { kRow, int64_t(offsetof(CompiledRow, member)) }

struct PartCode {
  Assembler code;
  std::vector<float> weights;
};

struct GroupCode {
  std::vector<PartCode> parts;
  int64_t work = 0;
};

// The weights of a group's filters that are not zero, input by input.
class GroupCompiler {
 public:
  GroupCompiler(const float* weights, const Convolution& convolution, const Activations& in, int64_t first,
                int64_t count)
      : weights_(weights + first * convolution.weights()), size_(convolution.weights()), count_(count) {
    const int64_t group = first / convolution.group_filters(), window = convolution.window();
    const int64_t group_offset = group * convolution.group_channels() * in.channel_stride;
    const int64_t nonzeros = size_ * count_ - std::count(weights_, weights_ + size_ * count_, 0.0f);
    const int64_t most = window == 1 ? kProducts : kProductsOfWindows;
    const int64_t parts = std::max<int64_t>(1, (nonzeros + most - 1) / most);
    // What fits into no cache is fetched a row ahead.
    constexpr int64_t kFar = 10 << 20;  // bytes
    const bool far = window > 1 && in.height * in.channels * in.channel_stride * kFloat > kFar;
    begin(true);
    for (int64_t i = 0; i < size_; ++i) {
      if (int64_t(made_.parts.size()) < parts && int64_t(made_.parts.back().weights.size()) * parts >= nonzeros) {
        part().code.jump(LPK_ROW(finish));
        begin(false);
      }
      const int64_t offset = group_offset + weight_offset(convolution, in, i);
      products(i, offset);
      if (far && i % window == 0) fetch_below(convolution, in, offset);
    }
    part().code.jump(LPK_ROW(finish));
    constexpr int64_t kFilter = 8;
    made_.work += nonzeros + kFilter * count;
  }

  GroupCode take() { return std::move(made_); }

 private:
  PartCode& part() { return made_.parts.back(); }

  void begin(bool first) {
    made_.parts.emplace_back();
    place_ = -kReach;
    if (!first) part().code.load(kSumsOfPixel, LPK_ROW(sums));
    for (int64_t k = 0; k < count_; ++k)
      first ? part().code.zero(int(k)) : part().code.load(int(k), {kSumsOfPixel, k * kPixel});
  }

  // The pixels of a channel that the windows of the outputs below will read besides. offset: of the channel.
  void fetch_below(const Convolution& convolution, const Activations& in, int64_t offset) {
    const int64_t below = (convolution.kernel_height - 1) * convolution.dilation_y + 1;
    const int64_t right = (convolution.kernel_width - 1) * convolution.dilation_x;
    for (int64_t y = below; y < below + convolution.stride_y; ++y)
      for (int64_t x = right; x > right - convolution.stride_x; --x)
        part().code.fetch({kIn, (offset + y * in.row_stride + x * kImages) * kFloat});
  }

  // Those of input number i of each filter.
  void products(int64_t i, int64_t offset) {
    bool loaded = false;
    for (int64_t k = 0; k < count_; ++k) {
      const float weight = weights_[k * size_ + i];
      if (weight == 0.0f) continue;
      if (!loaded) part().code.load(kOther, {kIn, offset * kFloat});
      made_.work += !loaded;
      loaded = true;
      if (place_ == kReach) {
        part().code.add(kWeights, int32_t(2 * kReach * kFloat));
        place_ = -kReach;
      }
      part().code.add_product(int(k), kOther, {kWeights, place_++ * kFloat});
      part().weights.push_back(weight);
    }
  }

  const float* weights_;
  int64_t size_, count_;
  int64_t place_ = 0;
  GroupCode made_;
};

int64_t groups_of(const Convolution& convolution) { return (convolution.group_filters() + kSums - 1) / kSums; }

void next_pixel(Assembler& code) {
  code.add(kIn, LPK_ROW(in_step));
  code.add(LPK_ROW(sums), int32_t(kSums * kPixel));
  code.add(kOut, int32_t(kPixel));
  code.add(kResidual, int32_t(kPixel));
  code.load(kWeights, LPK_ROW(weights));
  code.decrement(LPK_ROW(pixels));
  const int64_t again = code.skip_if_zero();
  code.jump(LPK_ROW(code));
  code.end_of_skipped(again);
  code.finish();
}

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

double compiled_together(const Convolution& convolution) {
  return double(convolution.group_filters()) / double(groups_of(convolution));
}

CompiledFilters::CompiledFilters(const float* weights, const Convolution& convolution, const Activations& in,
                                 int threads) {
  if (!compiles(convolution, in)) throw std::invalid_argument("these filters are not compiled");
  const int64_t of_group = convolution.group_filters(), parts = groups_of(convolution);
  std::vector<GroupCode> made(convolution.groups * parts);
  groups_.resize(made.size());
  parallel_for(int64_t(made.size()), threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = part(of_group, int(parts), int(i % parts));
      const int64_t count = part(of_group, int(parts), int(i % parts) + 1) - first;
      groups_[i].first = i / parts * of_group + first;
      groups_[i].count = count;
      made[i] = GroupCompiler(weights, convolution, in, groups_[i].first, count).take();
    }
  });
  constexpr int64_t kLine = 64;
  std::vector<uint8_t> code;
  std::vector<int64_t> places;
  for (const GroupCode& group : made) {
    for (const PartCode& part : group.parts) {
      places.push_back(int64_t(code.size()));
      code.insert(code.end(), part.code.bytes().begin(), part.code.bytes().end());
      code.resize(rounded_up(int64_t(code.size()), kLine), 0xcc);
      nonzeros_ += int64_t(part.weights.size());
    }
  }
  code_ = std::make_unique<Executable>(code.data(), int64_t(code.size()));
  weights_.reset(new float[nonzeros_ + 1]);
  float* next = weights_.get();
  auto place = places.begin();
  for (size_t i = 0; i < made.size(); ++i) {
    for (const PartCode& part : made[i].parts) {
      groups_[i].parts.push_back({code_->data() + *place++, next + kReach});
      next = std::copy(part.weights.begin(), part.weights.end(), next);
    }
    groups_[i].work = work_;
    work_ += made[i].work;
  }
  bytes_ = int64_t(code.size()) + nonzeros_ * kFloat;
}

bool compiles() {
#ifdef LPK_X86
  static const bool may = [] {
    try {
      CompiledEndings::get();
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }();
  return may && cpu::instruction_set() == "avx512";
#else
  return false;
#endif
}

bool compiles(const Convolution& convolution, const Activations& in) {
  const int64_t corner = weight_offset(convolution, in, convolution.window() - 1);  // of channel 0
  const int64_t last = (convolution.channels - 1) * in.channel_stride + corner;
  return compiles() && last * kFloat < int64_t(1) << 31;
}

CompiledEndings::CompiledEndings() : places_(4 * (kSums + 1)) {
  Assembler code;
  code.copy(kRow, Register::rdi);
  code.load(kIn, LPK_ROW(in));
  code.load(kOut, LPK_ROW(out));
  code.load(kResidual, LPK_ROW(residual));
  code.load(kWeights, LPK_ROW(weights));
  code.load(kOutChannel, LPK_ROW(out_channel));
  code.load(kResidualChannel, LPK_ROW(residual_channel));
  code.broadcast(kLow, LPK_ROW(low));
  code.jump(LPK_ROW(code));
  for (int variant = 0; variant < 4 * (kSums + 1); ++variant) {
    const bool residual = variant & 2, high = variant & 1;
    places_[variant] = code.size();
    code.load(kWeights, LPK_ROW(ending));
    code.copy(kOutOfFilter, kOut);
    if (residual) code.copy(kResidualOfFilter, kResidual);
    for (int k = 0; k < variant / 4; ++k) {
      code.broadcast(kOther, {kWeights, 2 * k * kFloat});
      code.scale(k, kOther, {kWeights, (2 * k + 1) * kFloat});
      if (residual) {
        code.add(k, {kResidualOfFilter, 0});
        code.add(kResidualOfFilter, kResidualChannel);
      }
      code.at_least(kLow, k);
      if (high) {
        code.broadcast(kOther, LPK_ROW(high));
        code.at_most(kOther, k);
      }
      code.store({kOutOfFilter, 0}, k);
      code.add(kOutOfFilter, kOutChannel);
    }
    next_pixel(code);
  }
  for (int k = 0; k <= kSums; ++k) {
    keeps_.push_back(code.size());
    code.load(kSumsOfPixel, LPK_ROW(sums));
    for (int i = 0; i < k; ++i) code.store({kSumsOfPixel, i * kPixel}, i);
    next_pixel(code);
  }
  code_ = std::make_unique<Executable>(code.bytes().data(), code.size());
}

const CompiledEndings& CompiledEndings::get() {
  static const CompiledEndings endings;
  return endings;
}

}  // namespace lpk::engine
