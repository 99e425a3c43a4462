// The sweep of one coefficient, which memory alone should bound: an entry takes a handful of instructions, and no warp waits for
// another.
#pragma once

#include "sweep.cuh"

namespace lpk::cuda {

constexpr int kTilesHeld = 2;  // whose entries a warp holds back at most before it writes them

// What a block has at hand for the sweep.
struct AloneMemory {
  Word held[kThreads / 32][kTilesHeld * 32 * kPerThread];
  unsigned above_hi, at_hi, at_lo;
};

// What a warp holds back of the entries inside the bracket.
struct Held {
  const Search& s;
  Word* words;
  unsigned number = 0;

  // Every thread calls it, whether it has a word or not.
  __device__ void add(bool has, Word word) {
    const unsigned those = __ballot_sync(kAllLanes, has);
    if (has) words[number + __popc(those & ((1u << threadIdx.x % 32) - 1))] = word;
    number += __popc(those);
  }
  __device__ void write() {
    const int lane = threadIdx.x % 32;
    unsigned long long base = 0;
    if (lane == 0 && number > 0) base = atomicAdd(&s.w.states->stored, (unsigned long long)number);
    base = __shfl_sync(kAllLanes, base, 0);
#pragma unroll 1
    for (unsigned i = lane; i < number; i += 32) store(s.w, 0, base + i, words[i]);
    __syncwarp();
    number = 0;
  }
};

template <class D>
__device__ void sweep_alone(const Search& s, AloneMemory& memory) {
  const State& state = *s.w.states;
  const float alpha = s.alpha(0), hi = D::value(state.hi), lo = state.lo < 0 ? -1.0f : D::value(state.lo);
  // Where zeros are at an end of the bracket they are most of the vector: as many as are left, uncounted.
  const float lowest = state.lo == 0 ? D::value(1) : lo;
  const float beyond = hi < INFINITY ? __int_as_float(__float_as_int(hi) + 1) : INFINITY;  // what is above has at least that
  const auto bits = [](float difference) { return unsigned(__float_as_int(difference)); };
  Held held{s, memory.held[threadIdx.x / 32]};
  if (threadIdx.x == 0) memory.above_hi = memory.at_hi = memory.at_lo = 0;
  unsigned above_hi = 0, at_hi = 0, at_lo = 0;
  const int64_t step = int64_t(gridDim.x) * kTile;
  Tile<D, kStreamed> tile(s.v, int64_t(blockIdx.x) * kTile);
  for (int64_t begin = tile.begin; begin < s.v.n; begin += step) {
    typename D::Stored x[kPerThread];
    unsigned marks = 0;  // the entries of the thread that are in the bracket or at its ends
    float sum = 0.0f;    // not finite where an entry is not
    // Without branches: signs are counted, and shifted into the marks.
#pragma unroll
    for (int e = kPerThread - 1; e >= 0; --e) {
      x[e] = interpolated<D>(tile.a[e], tile.b[e], alpha);
      const float magnitude = fabsf(D::widen(x[e]));
      const unsigned not_above = bits(magnitude - beyond), below = bits(magnitude - lowest);
      above_hi -= not_above >> 31;
      marks = __funnelshift_l(not_above & ~below, marks, 1);
      sum += magnitude;
    }
    above_hi += kPerThread;
    marks &= existing(tile.size);
    tile = Tile<D, kStreamed>(s.v, begin + step);  // arrives while this one's entries are looked at
    if (!(sum < INFINITY)) look_over<D>(s.v, begin);
    const unsigned any = __reduce_or_sync(kAllLanes, marks);
    if (any == 0) continue;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      if (!(any >> e & 1)) continue;
      const float magnitude = fabsf(D::widen(x[e]));
      const bool marked = marks >> e & 1, is_hi = marked && magnitude == hi, is_lo = marked && !is_hi && magnitude == lo;
      at_hi += is_hi;
      at_lo += is_lo;
      const bool inside = marked && !is_hi && !is_lo && magnitude >= lowest;  // no entry is where an end is NaN
      held.add(inside, word_of(D::key(x[e]), begin + place(e)));
    }
    __syncwarp();
    if (held.number > (kTilesHeld - 1) * 32 * kPerThread) held.write();
  }
  held.write();
  above_hi = __reduce_add_sync(kAllLanes, above_hi);
  at_hi = __reduce_add_sync(kAllLanes, at_hi);
  at_lo = __reduce_add_sync(kAllLanes, at_lo);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&memory.above_hi, above_hi);
    atomicAdd(&memory.at_hi, at_hi);
    atomicAdd(&memory.at_lo, at_lo);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&s.w.states->above_hi, (unsigned long long)memory.above_hi);
    if (memory.at_hi) atomicAdd(&s.w.states->at_hi, (unsigned long long)memory.at_hi);
    if (memory.at_lo) atomicAdd(&s.w.states->at_lo, (unsigned long long)memory.at_lo);
  }
}

}  // namespace lpk::cuda
