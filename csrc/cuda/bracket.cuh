// A bracket around each coefficient's threshold, from a sample.
#pragma once

#include <climits>
#include <cmath>

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kSamplesPerThread = 4;
constexpr int kBracketThreads = 1024;

// One entry of each of `count` stretches, at a place that does not repeat from stretch to stretch: channels do.
__device__ inline int64_t sample_position(int64_t n, int64_t count, int64_t i) {
  uint64_t z = 0x9e3779b97f4a7c15ull * uint64_t(i + 2);  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  const int64_t each = n / count, rest = n % count;
  const int64_t begin = i * each + (i < rest ? i : rest);
  return begin + int64_t(z % uint64_t(each + (i < rest)));
}

// The sample's keys, and the histogram of their highest bits.
template <class D>
__global__ void sample_kernel(Vectors v, const __grid_constant__ Coefficients alphas, Workspace w, int64_t size) {
  const int k = blockIdx.y;
  __shared__ unsigned histogram[kBins];
  clear(histogram);
  __syncthreads();
  const int64_t first = int64_t(blockIdx.x) * kThreads * kSamplesPerThread + threadIdx.x;
  Key keys[kSamplesPerThread];
#pragma unroll
  for (int e = 0; e < kSamplesPerThread; ++e) {
    const int64_t i = first + e * kThreads;
    if (i >= size) continue;
    keys[e] = D::key(element<D>(v, get(alphas, k), sample_position(v.n, size, i)));
  }
#pragma unroll
  for (int e = 0; e < kSamplesPerThread; ++e) {
    const int64_t i = first + e * kThreads;
    if (i >= size) continue;
    w.sample[int64_t(k) * kSample + i] = keys[e];
    atomicAdd(&histogram[keys[e] >> (D::kKeyBits - kBinBits)], 1u);
  }
  __syncthreads();
  add_to(w.histogram(k), histogram);
}

// The bracket: the sampled keys that are `upper` and `lower` entries from the top. Where the sample ends before, the bracket
// has no end. Both are found at once: their highest bits in the sample's histogram, the others in histograms of what
// shares these bits.
template <class D>
__global__ void bracket_kernel(Workspace w, int size, int64_t upper, int64_t lower, float* values, int64_t* last) {
  constexpr int kBatch = 8;  // reads of a thread that are under way at once
  __shared__ unsigned histograms[2][kBins];
  const int k = blockIdx.x;
  const Key* sample = w.sample + int64_t(k) * kSample;
  const bool sought[2] = {upper >= 1, lower <= size};
  int64_t rank[2] = {upper, lower};
  Key prefix[2] = {-1, -1};
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (sought[h]) prefix[h] = find_bin(w.histogram(k), rank[h]);
  for (int shift = D::kKeyBits - kBinBits; shift > 0;) {
    const int bits = next_bits(shift);
    clear(histograms[0]);
    clear(histograms[1]);
    __syncthreads();
    for (int begin = threadIdx.x; begin < size; begin += kBatch * kBracketThreads) {
      Key keys[kBatch];
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        const int i = begin + e * kBracketThreads;
        keys[e] = i < size ? sample[i] : -1;
      }
#pragma unroll
      for (int e = 0; e < kBatch; ++e) {
        if (keys[e] < 0) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if ((keys[e] >> shift) == prefix[h])
            atomicAdd(&histograms[h][(keys[e] >> (shift - bits)) & ((1 << bits) - 1)], 1u);
      }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (sought[h]) prefix[h] = (prefix[h] << bits) | find_bin(histograms[h], rank[h]);
    shift -= bits;
  }
  if (threadIdx.x == 0) {
    w.states[k].hi = sought[0] ? prefix[0] : INT_MAX;
    w.states[k].lo = prefix[1];
    values[k] = INFINITY;  // what nothing survives, should there be no threshold: among NaN
    last[k] = -1;
  }
  clear(w.histogram(k));
}

}  // namespace lpk::cuda
