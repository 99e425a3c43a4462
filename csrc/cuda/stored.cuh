// The threshold among the entries that the sweep stored: a histogram of them, a list of those in the bin that holds it, and
// the one of its rank in that list.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

#ifdef LPK_EMULATED
constexpr int kListBlocks = 3;
#else
constexpr int kListBlocks = 256;  // for each coefficient
#endif

// Calls body(word) for the stored entries that are the block's share.
template <class Body>
__device__ void for_each_stored(const Workspace& w, int k, Body body) {
  const Word* stored = w.stored + k * w.room;
  const auto size = int64_t(w.states[k].stored);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < size; i += int64_t(gridDim.x) * kThreads)
    body(stored[i]);
}

__global__ void stored_histogram_kernel(Workspace w) {
  const int k = blockIdx.y;
  const State& s = w.states[k];
  if (s.status != kInBracket) return;
  __shared__ unsigned histogram[kBins];
  clear(histogram);
  __syncthreads();
  const Word first = s.first_word();
  const int shift = s.shift;
  for_each_stored(w, k, [&](Word word) { atomicAdd(&histogram[(word - first) >> shift], 1u); });
  __syncthreads();
  add_to(w.histogram(k), histogram);
}

// The word of `rank` (from 1, the largest first) among those in which all but the lowest `shift` bits are `prefix`, and which
// are all that is listed; words count from `first`.
__device__ inline Word select_word(const Word* listed, int64_t size, Word first, Word prefix, int shift, int64_t rank) {
  __shared__ unsigned histogram[kBins];
  while (shift > 0) {
    const int bits = next_bits(shift);
    clear(histogram);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
      const Word x = listed[i] - first;
      if (x >> shift == prefix) atomicAdd(&histogram[(x >> (shift - bits)) & ((1 << bits) - 1)], 1u);
    }
    __syncthreads();
    prefix = (prefix << bits) | Word(find_bin(histogram, rank));
    shift -= bits;
  }
  return first + prefix;
}

template <class D>
__global__ void stored_select_kernel(Workspace w, float* values, int64_t* last) {
  const int k = blockIdx.y;
  State& s = w.states[k];
  if (s.status != kInBracket) return;
  Word* listed = w.listed + k * w.room;
  const Word first = s.first_word();
  const int shift = s.shift;
  int64_t rank = s.rank;
  const auto bin = Word(find_bin(w.histogram(k), rank));
  for_each_stored(w, k, [&](Word word) {
    if ((word - first) >> shift == bin) listed[atomicAdd(&s.listed, 1ull)] = word;
  });
  if (!last_of(&s.tickets, gridDim.x)) return;
  const Word word = select_word(listed, int64_t(s.listed), first, bin, shift, rank);
  if (threadIdx.x == 0) {
    values[k] = D::value(key_of(word));
    last[k] = index_of(word);
    s.status = kDone;
  }
}

}  // namespace lpk::cuda
