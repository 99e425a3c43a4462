// What the threads of a block do together, as finding the entry of a rank; and how all blocks wait for each other.
// Every thread of the block must call these functions, with the same arguments unless told otherwise, and gets the same
// results.
#pragma once

#ifndef LPK_EMULATED
#include <cooperative_groups.h>
#endif

#include "elements.cuh"

namespace lpk::cuda {

constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;

// Waits until all blocks of a kernel that run together have come here, and sees what they wrote before.
__device__ inline void wait_for_all_blocks() {
  if (gridDim.x == 1) return __syncthreads();
  cooperative_groups::this_grid().sync();
}

// Each thread has `own` entries, which follow those of the threads before it. Calls found(left) in the thread that has the
// entry of `rank` (from 1) as its own number `left` (from 1).
template <class Found>
__device__ void find_thread(unsigned long long own, int64_t rank, Found found) {
  __shared__ unsigned long long sums[32];  // of each warp
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned long long through = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long before = __shfl_up_sync(0xffffffffu, through, distance);
    if (lane >= distance) through += before;
  }
  if (lane == 31) sums[warp] = through;
  __syncthreads();
  for (int w = 0; w < warp; ++w) through += sums[w];
  const int64_t before = int64_t(through - own);
  if (before < rank && rank <= int64_t(through)) found(rank - before);
  __syncthreads();
}

// A bin of a histogram, and an entry's rank in it, from 1.
struct Bin {
  int index;
  int64_t rank;
};

// The bin that holds the entry of `rank` (from 1, that of the highest bin first). A function that is called, not a part of each
// phase: their instructions, which are run once, come from memory.
template <class Count>
__device__ __noinline__ Bin find_bin(const Count* histogram, int64_t rank) {
  constexpr int kEach = kBins / kThreads;
  __shared__ Bin found;
  const int first = kBins - 1 - int(threadIdx.x) * kEach;  // downwards from there
  Count counts[kEach];
  unsigned long long own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) own += counts[i] = histogram[first - i];
  find_thread(own, rank, [&](int64_t left) {
    int bin = first;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {  // as long as none of them is it
      const bool further = bin == first - i && left > int64_t(counts[i]);
      left -= further ? int64_t(counts[i]) : 0;
      bin -= further;
    }
    found = {bin, left};
  });
  const Bin bin = found;
  __syncthreads();
  return bin;
}

template <class Count>
__device__ void clear(Count* histogram) {
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) histogram[i] = 0;
}

// Adds a block's histogram to that of all blocks.
__device__ inline void add_to(unsigned long long* histogram, const unsigned* own) {
  for (int i = threadIdx.x; i < kBins; i += blockDim.x)
    if (own[i]) atomicAdd(&histogram[i], (unsigned long long)own[i]);
}

// How many of the remaining bits the next histogram tells apart.
__host__ __device__ inline int next_bits(int remaining) { return remaining < kBinBits ? remaining : kBinBits; }

}  // namespace lpk::cuda
