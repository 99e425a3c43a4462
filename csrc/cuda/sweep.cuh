// One sweep over a and b for all coefficients: how many entries lie above each bracket and at its ends, and which lie inside.
#pragma once

#include "marked.cuh"

namespace lpk::cuda {

// The same bits in every byte; and the lowest bytes of a word.
__device__ inline unsigned in_all(unsigned bits) { return bits * 0x01010101u; }
__device__ inline unsigned bytes(int count) { return count >= kTogether ? ~0u : (1u << (8 * count)) - 1; }

// Calls body(swept, j) for the coefficients of a word, the last one first.
template <class Body>
__device__ void for_each_together(const Swept* swept, int count, int word, Body body) {
#pragma unroll
  for (int j = kTogether - 1; j >= 0; --j)
    if (word * kTogether + j < count) body(swept[word * kTogether + j], j);
}

// Which entries of a thread's tile are not above the brackets, counted, and which are neither below them, marked, for all
// coefficients.
template <class D>
__device__ void compare_exactly(const Swept* swept, int count, const SweptTile<D>& tile, unsigned (&counts)[kWords],
                                unsigned (&marks)[kWords]) {
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    marks[word] = 0;
    if (word * kTogether >= count) continue;
    for_each_together(swept, count, word, [&](const Swept& s, int j) {
      const float alpha = s.alpha, hi = s.hi, lowest = s.lowest;
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        const float magnitude = fabsf(D::widen(interpolated<D>(tile.a[e], tile.b[e], alpha)));
        const bool above = magnitude > hi;
        if (!above) counts[word] += 1u << (8 * j);
        if (!above && magnitude >= lowest) marks[word] |= 1u << (8 * j + e);
      }
    });
  }
}

// The same roughly, without branches: signs are counted and shifted into the marks. Counts what is not above the middles.
__device__ inline void compare_roughly(const Swept* swept, int count, const float (&steps)[kPerThread],
                                       const float (&b)[kPerThread], unsigned (&counts)[kWords],
                                       unsigned (&marks)[kWords]) {
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    marks[word] = 0;
    if (word * kTogether >= count) continue;
    for_each_together(swept, count, word, [&](const Swept& s, int j) {
      const float alpha = s.alpha, middle = s.middle, half = s.half;
      unsigned below = 0;
#pragma unroll
      for (int e = kPerThread - 1; e >= 0; --e) {
        const float distance = fabsf(__fmaf_rn(alpha, steps[e], b[e])) - middle;
        below += unsigned(__float_as_int(distance)) >> 31;
        marks[word] = __funnelshift_l(unsigned(__float_as_int(fabsf(distance) - half)), marks[word], 1);
      }
      counts[word] += below << (8 * j);
    });
  }
}

// Adds a thread's counts to those of the block.
__device__ inline void add_counts(Swept* swept, int count, unsigned (&counts)[kWords], int tiles) {
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int k = word * kTogether + j;
      if (k >= count) break;
      const unsigned all = __reduce_add_sync(kAllLanes, unsigned(tiles * kPerThread) - (counts[word] >> (8 * j) & 255));
      if (threadIdx.x % 32 == 0 && all) atomicAdd(&swept[k].above_hi, all);
    }
    counts[word] = 0;
  }
}

template <class D>
__device__ void begin_sweep(const Search& s, SweepMemory& memory) {
  if (threadIdx.x < s.count) memory.swept[threadIdx.x] = begin<D>(s.w.states[threadIdx.x], s.alpha(threadIdx.x));
  for (int i = threadIdx.x; i < kWarps * kMostCoefficients; i += kThreads) memory.staged[0][i] = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    float least = kRough<D> ? INFINITY : 0.0f;
    for (int k = 0; k < s.count; ++k) {
      const Swept& own = memory.swept[k];
      least = fminf(least, own.hi <= kMost ? own.lo : 0.0f);
    }
    memory.far = least >= kLeast && least <= kMost ? kFar * least : -1.0f;
  }
  __syncthreads();
}

// Reports what is not finite of a thread's entries of the tile that begins at `begin`; they are read once more.
template <class D>
__device__ void look_over(const Vectors& v, int64_t begin) {
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x; i < v.n && i < begin + kTile; i += kThreads) {
    const auto is_finite = [&](const void* x) { return !x || finite(D::widen(static_cast<const typename D::Stored*>(x)[i])); };
    if (!is_finite(v.a) || !is_finite(v.b)) report(v, i);
  }
}

// Whether all |a| and |b| of a thread's entries add up to no more than that; they do not where one is infinite or NaN.
template <class D>
__device__ bool are_small(const SweptTile<D>& tile, float most) {
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) sum += fabsf(D::widen(tile.a[e])) + fabsf(D::widen(tile.b[e]));
  return sum <= most;
}

// Makes zeros of the entries of a thread that are not known roughly; returns their bits.
template <class D>
__device__ unsigned leave_out_far(SweptTile<D>& tile, float far) {
  unsigned left_out = 0;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    if (are_within(tile.a[e], tile.b[e], far)) continue;
    left_out |= 1u << e;
    tile.a[e] = tile.b[e] = 0.0f;
  }
  return left_out;
}

template <class D>
__device__ void sweep(const Search& s, SweepMemory& memory) {
  begin_sweep<D>(s, memory);
  const int64_t step = int64_t(gridDim.x) * kTile;
  const bool roughly = memory.far >= 0.0f;
  unsigned counts[kWords] = {}, marks[kWords];
  int uncounted = 0;
  Marked marked{int64_t(blockIdx.x) * kTile};
  const auto count_marked = [&](int64_t following) {
    marked.look_at_waiting<D>(s, memory, 1);
    add_counts(memory.swept, s.count, counts, uncounted);
    uncounted = 0;
    marked.begin = following;
  };
  for (int64_t begin = marked.begin; begin < s.v.n; begin += step) {
    SweptTile<D> tile(s.v, begin);
    unsigned left_out = 0;
    const bool small = are_small(tile, roughly ? memory.far : kLargest);
    if (!small) look_over<D>(s.v, begin);
    if constexpr (kRough<D>) {
      if (roughly) {
        if (!small) left_out = leave_out_far(tile, memory.far);
#pragma unroll
        for (int e = 0; e < kPerThread; ++e) tile.a[e] -= tile.b[e];
        compare_roughly(memory.swept, s.count, tile.a, tile.b, counts, marks);
      }
    }
    if (!kRough<D> || !roughly) compare_exactly(memory.swept, s.count, tile, counts, marks);
    const unsigned exist = existing(tile.size);
#pragma unroll
    for (int word = 0; word < kWords; ++word)
      if (word * kTogether < s.count)
        marks[word] = (marks[word] | (in_all(left_out) & bytes(s.count - word * kTogether))) & in_all(exist);
    marked.add<D>(s, memory, uncounted, marks);
    if (++uncounted == kTilesCounted) count_marked(begin + step);
  }
  count_marked(0);
  flush(s.w, s.count, memory);
  __syncthreads();
  if (threadIdx.x < s.count) {
    State& state = s.w.states[threadIdx.x];
    const Swept& own = memory.swept[threadIdx.x];
    atomicAdd(&state.above_hi, (unsigned long long)own.above_hi);
    if (own.at_hi) atomicAdd(&state.at_hi, (unsigned long long)own.at_hi);
    if (own.at_lo) atomicAdd(&state.at_lo, (unsigned long long)own.at_lo);
  }
}

}  // namespace lpk::cuda
