// The keep-th largest magnitude of an interpolation, exactly and without sorting, for many coefficients at once.
//
// As on a CPU: a sample gives each coefficient a bracket (bracket.cuh), one sweep over a and b counts for all coefficients and
// stores the few entries inside their brackets (sweep.cuh), and the threshold is selected among those (stored.cuh). Where
// the bracket does not tell, histograms of all entries do (fallback.cuh). Which of several equal magnitudes survives is
// decided by their indices, never by the order in which threads arrive.
#include <algorithm>
#include <cmath>

#include "bracket.cuh"
#include "bracket.h"
#include "fallback.cuh"
#include "stored.cuh"
#include "sweep.cuh"

namespace lpk::cuda {
namespace {

template <class D>
void thresholds(float* values, int64_t* last, const Vectors& v, const Coefficients& alphas, int count, int64_t keep,
                void* memory) {
  Workspace w{};
  divide(w, memory, v.n, count);
  const int64_t size = std::min<int64_t>(kSample, v.n);
  const double share = double(keep) / double(v.n), expected = share * double(size);
  const double width = kBracketSigmas * std::sqrt(expected * (1.0 - share)) + 2.0;
  const auto upper = int64_t(std::floor(expected - width)) + 1, lower = int64_t(std::ceil(expected + width)) + 1;
  const auto s = v.stream;
  const auto for_each = [&](int64_t blocks) { return dim3(unsigned(blocks), unsigned(count)); };  // coefficient
  const auto whole = for_each(std::min<int64_t>(tiles(v.n), kFallbackBlocks));
  const unsigned sweeping = resident_blocks<sweep_kernel<D>>();

  const auto cleared = reinterpret_cast<char*>(w.equal) - reinterpret_cast<char*>(w.states);  // states and histograms
  check(cudaMemsetAsync(w.states, 0, std::size_t(cleared), s));
  const auto sampling = for_each((size + kThreads * kSamplesPerThread - 1) / (kThreads * kSamplesPerThread));
  LPK_LAUNCH(sample_kernel<D>, sampling, kThreads, s, v, alphas, w, size, std::max<int64_t>(upper, 0),
             lower <= size ? lower : 0);
  LPK_LAUNCH(bracket_kernel<D>, sampling, kThreads, s, w, size, values, last);
  LPK_LAUNCH(sweep_kernel<D>, unsigned(std::min<int64_t>(tiles(v.n), sweeping)), kThreads, s, v, alphas, w, count, keep);
  LPK_LAUNCH(stored_histogram_kernel, for_each(kListBlocks), kThreads, s, w);
  LPK_LAUNCH(stored_select_kernel<D>, for_each(kListBlocks), kThreads, s, w, values, last);
  for (int bits = D::kKeyBits; bits > 0; bits -= next_bits(bits))
    LPK_LAUNCH(histogram_kernel<D>, whole, kThreads, s, v, alphas, w);
  LPK_LAUNCH(ties_kernel<D>, whole, kThreads, s, v, alphas, w, values, last);
}

}  // namespace

int64_t workspace_bytes(int64_t n, int count) {
  Workspace w{};
  return divide(w, nullptr, n, std::min(count, kMostCoefficients));
}

void interpolate_threshold(float* values, int64_t* last, const Vectors& v, Numbers alphas, int count, int64_t keep,
                           void* workspace) {
  for (int first = 0; first < count; first += kMostCoefficients) {
    const int some = std::min(count - first, kMostCoefficients);
    for_dtype(v.dtype, [&](auto dtype) {
      thresholds<decltype(dtype)>(values + first, last + first, v, alphas.from(first, some), some, keep,
                                    workspace);
    });
  }
  check_launch();
}

}  // namespace lpk::cuda
