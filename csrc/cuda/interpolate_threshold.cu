// The keep-th largest magnitude of an interpolation, exactly and without sorting, for many coefficients at once.
//
// As on a CPU: a sample gives each coefficient a bracket (bracket.cuh), one sweep over a and b counts for all coefficients and
// stores the few entries inside their brackets (sweep.cuh), the counts tell where each threshold is (verdict.cuh), and it is
// selected among what is stored (stored.cuh). Where the bracket does not tell, histograms of all entries do (fallback.cuh).
// Which of several equal magnitudes survives is decided by their indices, never by the order in which threads arrive.
//
// All of it is one kernel, whose blocks run together and wait for each other between the phases: a kernel for each would cost
// the host more than a small vector costs the device.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "bracket.cuh"
#include "bracket.h"
#include "cut.cuh"
#include "fallback.cuh"
#include "stored.cuh"
#include "sweep.cuh"
#include "sweep_alone.cuh"

namespace lpk::cuda {
namespace {

// What a block has at hand, for one phase after the other.
template <bool alone>
union Memory {
  unsigned histograms[kEnds][kBins];
  std::conditional_t<alone, AloneMemory, SweepMemory> sweep;
  Word few[kFew];
};

// Notes when each phase begins, which is when all blocks have done the last one, and when the first block is at its end.
struct Phases {
  const Search& s;
  int noted = 0;

  __device__ bool is_mine() const { return blockIdx.x == 0 && threadIdx.x == 0; }
  __device__ void begin() {
    for (int i = 0; is_mine() && i < kMostStamps; ++i) s.w.stamps[i] = 0;
    note();
  }
  __device__ void next() {
    wait_for_all_blocks();
    note();
  }
  __device__ void note() {
    if (is_mine()) s.w.stamps[noted] = clock64();
    ++noted;
  }
};

template <class D>
__device__ void cut(const Search& s) {
  for (int64_t begin = int64_t(blockIdx.x) * kTile; begin < s.v.n; begin += int64_t(gridDim.x) * kTile) {
    const Tile<D> tile(s.v, begin);
    for (int k = 0; k < s.count; ++k) {
      const Threshold threshold{s.values[k], s.last[k]};
      if (s.cut.ending == kMask) {
        mask_tile(s.v, tile, static_cast<bool*>(s.cut.out), threshold);
      } else {
        prune_tile(s.v, tile, static_cast<typename D::Stored*>(s.cut.out) + k * s.v.n, s.alpha(k), threshold);
      }
    }
  }
}

constexpr int kBlocksTogether = 3;  // on a multiprocessor, at least

// alone: for one coefficient.
template <class D, bool alone>
__global__ void __launch_bounds__(kThreads, kBlocksTogether) search_kernel(const __grid_constant__ Search s) {
  __shared__ Memory<alone> memory;
  __shared__ Verdicts verdicts;
  Phases phases{s};
  phases.begin();
  begin_search<D>(s);
  phases.next();
  if (s.upper > 0 || s.lower > 0) {
    count_sample<D>(s, memory.histograms[0]);
    phases.next();
    count_near_ends<D>(s, memory.histograms);
    phases.next();
    find_bracket<D>(s, memory.histograms);
    phases.next();
  }
  if constexpr (alone) {
    sweep_alone<D>(s, memory.sweep);
  } else {
    sweep<D>(s, memory.sweep);
  }
  phases.next();
  judge<D>(s, verdicts);
  count_stored(s, verdicts, memory.histograms[0]);
  phases.next();
  list_stored(s, verdicts);
  phases.next();
  select_listed<D>(s, verdicts, memory.histograms[0], memory.few);
  if (verdicts.pending_count > 0) {
    if (verdicts.any_unknown) {
#pragma unroll 1
      for (int round = 0, left = D::kKeyBits; left > 0; ++round, left -= next_bits(left)) {
        count_keys<D>(s, verdicts, round, memory.histograms[0]);
        phases.next();
        narrow(s, verdicts, round);
      }
    }
    count_ties<D>(s, verdicts);
    phases.next();
    find_last<D>(s, verdicts);
  }
  if (s.cut.ending != kNothing) {
    phases.next();
    cut<D>(s);
  }
  phases.note();
}

template <auto kernel>
void launch(const Search& s, int64_t blocks) {
  launch_together<kernel>(unsigned(std::min<int64_t>(resident_blocks<kernel>(), blocks)), s.v.stream, s);
}

// Between which of the sampled entries the threshold should be.
void choose_bracket(Search& s) {
  const double share = double(s.keep) / double(s.v.n), expected = share * double(s.size);
  const double width = kBracketSigmas * std::sqrt(expected * (1.0 - share)) + 2.0;
  s.upper = std::max<int64_t>(int64_t(std::floor(expected - width)) + 1, 0);
  s.lower = int64_t(std::ceil(expected + width)) + 1;
  if (s.lower > s.size) s.lower = 0;
}

template <class D>
void launch(Search& s) {
  s.size = sample_size(s.v.n, s.count);
  // A single block stores all of a short vector sooner than several, which wait for each other, find a bracket. Otherwise there
  // is something to do for one at each tile, and at each tile of each coefficient's sample.
  const bool is_short = s.count == 1 && s.v.n <= kStoredWholly;
  const int64_t blocks = is_short ? 1 : std::max(tiles(s.v.n), s.count * tiles(s.size));
  if (!is_short) choose_bracket(s);
  if (s.count == 1) {
    launch<search_kernel<D, true>>(s, blocks);
  } else {
    launch<search_kernel<D, false>>(s, blocks);
  }
}

// Thresholds go to where they are wanted, or into the workspace.
Thresholds search(const Vectors& v, const Coefficients& alphas, int count, int64_t keep, void* workspace, Cut cut,
                  float* values = nullptr, int64_t* last = nullptr) {
  Search s{};
  divide(s.w, workspace, v.n, count);
  s.v = v;
  s.alphas = alphas;
  s.count = count;
  s.keep = keep;
  s.cut = cut;
  s.values = values ? values : s.w.values;
  s.last = last ? last : s.w.last;
  for_dtype(v.dtype, [&](auto dtype) { launch<decltype(dtype)>(s); });
  return {s.values, s.last};
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
    search(v, alphas.from(first, some), some, keep, workspace, Cut{}, values + first, last + first);
  }
}

Thresholds find_thresholds(const Vectors& v, const Coefficients& alphas, int count, int64_t keep, void* workspace,
                           Cut cut) {
  return search(v, alphas, count, keep, workspace, cut);
}

const long long* phases(void* workspace, int64_t n, int count) {
  Workspace w{};
  divide(w, workspace, n, count);
  return w.stamps;
}

}  // namespace lpk::cuda
