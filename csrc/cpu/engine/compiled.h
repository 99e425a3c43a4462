// Filters as machine code. The sums of some filters for one pixel (of 16 images) stay in registers together, up to 30;
// an input is loaded once for all of them that have a weight for it, and what is zero takes no instruction. The weights
// lie in the order in which they are used.
//
// In the loops each product needs its input from the first-level cache, which holds those of few channels; here a load
// serves three products where a tenth of the weights are left, and the second-level cache is near enough.
#pragma once

#include <memory>
#include <vector>

#include "engine.h"
#include "executable.h"

namespace lpk::engine {

constexpr int64_t kFloat = sizeof(float);

// Some inputs' products: as much code as the first-level cache holds for the next pixel.
struct CompiledPart {
  const void* code;
  const float* weights;
};

// Neighbouring filters whose sums are in registers together. Between the parts the sums of each pixel are in memory.
struct CompiledGroup {
  int64_t first, count;
  std::vector<CompiledPart> parts;
  int64_t work;  // about how long the groups before take, in instructions
};

constexpr int64_t kCompiledSums = 30;

// How many they are, in the mean.
double compiled_together(const Convolution& convolution);

class CompiledFilters {
 public:
  CompiledFilters(const float* weights, const Convolution& convolution, const Activations& in, int threads);

  const std::vector<CompiledGroup>& groups() const { return groups_; }
  int64_t work() const { return work_; }
  int64_t nonzeros() const { return nonzeros_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::vector<CompiledGroup> groups_;
  std::unique_ptr<float[]> weights_;
  std::unique_ptr<Executable> code_;
  int64_t work_ = 0, nonzeros_ = 0, bytes_ = 0;
};

// Neighbouring pixels of a row, for a group of filters; the code counts them down and moves the addresses on.
struct CompiledRow {
  const float* in;
  float* out;
  const float* residual;
  const float* weights;
  const float* ending;  // scale and bias of each filter
  float* sums;          // kCompiledSums pixels for each
  int64_t pixels;
  int64_t in_step;  // bytes from a pixel to the next
  int64_t out_channel;
  int64_t residual_channel;
  const void* code;
  const void* finish;  // what follows the sums
  float low, high;
};

// The code that is the same for all filters: how a row begins, and how sums end.
class CompiledEndings {
 public:
  static const CompiledEndings& get();

  using Start = void (*)(CompiledRow*);
  Start start() const { return reinterpret_cast<Start>(reinterpret_cast<uintptr_t>(at(0))); }
  const void* finish(int64_t filters, bool residual, bool high) const {
    return at(places_[4 * filters + 2 * residual + high]);
  }
  const void* keep(int64_t filters) const { return at(keeps_[filters]); }

 private:
  CompiledEndings();
  const uint8_t* at(int64_t place) const { return code_->data() + place; }

  std::vector<int64_t> places_, keeps_;
  std::unique_ptr<Executable> code_;
};

}  // namespace lpk::engine
