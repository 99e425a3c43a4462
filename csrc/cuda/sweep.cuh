// One sweep over a and b for all coefficients: how many entries lie above each bracket and at its ends, and which lie inside.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kStage = 128;  // entries of one coefficient that a block holds back before it writes them

// What a block knows of one coefficient while it sweeps.
struct Swept {
  float alpha;
  float lo, hi;  // the magnitudes of the bracket's ends: -1 and NaN, which nothing is above, where it has none
  float lowest;  // the smallest magnitude that is looked at
  unsigned above_hi, at_hi, at_lo;
  unsigned staged;  // entries inside, even those that the stage had no room for
  unsigned long long base;
};

template <class D>
__device__ Swept begin(const State& s, float alpha) {
  Swept swept{alpha, s.lo < 0 ? -1.0f : D::value(s.lo), D::value(s.hi)};
  // Where zeros are at an end of the bracket they are most of the vector: as many as are left, uncounted.
  swept.lowest = s.lo == 0 ? D::value(1) : swept.lo;
  return swept;
}

__device__ inline void store(const Workspace& w, int k, unsigned long long at, Word word) {
  if (at < (unsigned long long)w.room) w.stored[k * w.room + int64_t(at)] = word;
}

// Writes what the block holds back, and empties the stage.
__device__ inline void flush(const Workspace& w, int count, Swept* swept, const Word (*stage)[kStage]) {
  const auto held = [&](int k) { return swept[k].staged < kStage ? swept[k].staged : unsigned(kStage); };
  if (threadIdx.x < count) {
    const int k = threadIdx.x;
    if (held(k)) swept[k].base = atomicAdd(&w.states[k].stored, (unsigned long long)held(k));
  }
  __syncthreads();
  for (int j = threadIdx.x; j < count * kStage; j += kThreads) {
    const int k = j / kStage;
    const unsigned slot = j % kStage;
    if (slot < held(k)) store(w, k, swept[k].base + slot, stage[k][slot]);
  }
  __syncthreads();
  if (threadIdx.x < count) swept[threadIdx.x].staged = 0;
  __syncthreads();
}

// Where the counts tell that the threshold is: inside the bracket, at one of its ends, or elsewhere.
template <class D>
__device__ void judge(State& s, int64_t n, int64_t room, int64_t keep) {
  const int64_t from_hi = s.hi == 0 ? n : int64_t(s.above_hi + s.at_hi);
  const int64_t above_lo = from_hi + int64_t(s.stored);
  const int64_t from_lo = s.lo == 0 ? n : above_lo + int64_t(s.at_lo);
  s.status = kUnknown;
  s.shift = D::kKeyBits;
  s.prefix = 0;
  s.rank = keep;
  if (keep <= int64_t(s.above_hi) || keep > from_lo) return;
  if (keep <= from_hi) {
    s.status = kTied;
    s.key = s.hi;
    s.rank = keep - int64_t(s.above_hi);
  } else if (keep > above_lo) {
    s.status = kTied;
    s.key = s.lo;
    s.rank = keep - above_lo;
  } else if (int64_t(s.stored) <= room) {
    s.status = kInBracket;
    s.rank = keep - from_hi;
    s.shift = 0;
    while (((s.words() - 1) >> s.shift) >= kBins) ++s.shift;
  }
}

// Bit e: whether the thread's e-th entry of a tile of this size exists.
__device__ inline unsigned existing(int size) { return (1u << ((size + kThreads - 1 - int(threadIdx.x)) / kThreads)) - 1; }

template <class D>
__global__ void __launch_bounds__(kThreads, 4) sweep_kernel(Vectors v, const __grid_constant__ Coefficients alphas,
                                                            Workspace w, int count, int64_t keep) {
  __shared__ Word stage[kMostCoefficients][kStage];
  __shared__ Swept swept[kMostCoefficients];
  if (threadIdx.x < count) {
    const int k = threadIdx.x;
    // Without b it reads as zeros: x = fma(1, a, 0).
    swept[k] = begin<D>(w.states[k], v.b ? get(alphas, k) : 1.0f);
  }
  __syncthreads();
  for (int64_t begin = int64_t(blockIdx.x) * kTile; begin < v.n; begin += int64_t(gridDim.x) * kTile) {
    const Tile<D> tile(v, begin);
    const auto both_finite = [&](int e) { return finite(D::widen(tile.a[e])) && finite(D::widen(tile.b[e])); };
    bool all_finite = true;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) all_finite = all_finite && both_finite(e);
    if (!all_finite) {
#pragma unroll
      for (int e = 0; e < kPerThread; ++e)
        if (!both_finite(e)) report(v, tile.index(e));
    }
    bool crowded = false;
    for (int k = 0; k < count; ++k) {
      const float alpha = swept[k].alpha, lowest = swept[k].lowest, hi = swept[k].hi;
      unsigned above = 0, from_lo = 0;  // bit e: whether the e-th entry is above the bracket, and whether it is not below
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        const float magnitude = fabsf(D::widen(interpolated<D>(tile.a[e], tile.b[e], alpha)));
        if (magnitude > hi) above |= 1u << e;
        if (magnitude >= lowest) from_lo |= 1u << e;
      }
      unsigned counts = __popc(above);  // above hi, at hi and at lo in ten bits each: at most 32 * kPerThread in a warp
      for (unsigned within = from_lo & ~above & existing(tile.size); within; within &= within - 1) {
        const int64_t i = tile.index(__ffs(int(within)) - 1);
        const auto x = element<D>(v, alpha, i);
        const float magnitude = fabsf(D::widen(x));
        if (magnitude == hi) {
          counts += 1u << 10;
        } else if (magnitude == swept[k].lo) {
          counts += 1u << 20;
        } else {
          const Word word = word_of(D::key(x), i);
          const unsigned slot = atomicAdd(&swept[k].staged, 1u);
          if (slot < kStage) {
            stage[k][slot] = word;
          } else {
            store(w, k, atomicAdd(&w.states[k].stored, 1ull), word);
          }
          crowded = crowded || slot >= kStage / 2;
        }
      }
      counts = __reduce_add_sync(0xffffffffu, counts);
      if (threadIdx.x % 32 == 0 && counts) {
        atomicAdd(&swept[k].above_hi, counts & 1023);
        if (counts >> 10) {
          atomicAdd(&swept[k].at_hi, counts >> 10 & 1023);
          atomicAdd(&swept[k].at_lo, counts >> 20);
        }
      }
    }
    if (__syncthreads_or(crowded)) flush(w, count, swept, stage);
  }
  flush(w, count, swept, stage);
  if (threadIdx.x < count) {
    const int k = threadIdx.x;
    atomicAdd(&w.states[k].above_hi, (unsigned long long)swept[k].above_hi);
    atomicAdd(&w.states[k].at_hi, (unsigned long long)swept[k].at_hi);
    atomicAdd(&w.states[k].at_lo, (unsigned long long)swept[k].at_lo);
  }
  if (last_of(&w.states[0].tickets, gridDim.x) && threadIdx.x < count)
    judge<D>(w.states[threadIdx.x], v.n, w.room, keep);
}

}  // namespace lpk::cuda
