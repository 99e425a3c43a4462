// A bracket around each coefficient's threshold, from a sample.
#pragma once

#include <climits>
#include <cmath>

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kSamplesPerThread = 4;

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

// Both ends of a bracket are found alike: the bin of their highest bits in a histogram of the sample, then of the next bits
// among the entries that share these.
__device__ inline unsigned long long* histogram_of_end(const Workspace& w, int k, int end) {
  return w.histogram(k) + int64_t(end) * kBins;
}

// The sample's keys, and the bins of their highest bits that hold the entries `ranks` from the top; 0: none is sought.
template <class D>
__global__ void sample_kernel(Vectors v, const __grid_constant__ Coefficients alphas, Workspace w, int64_t size,
                              int64_t upper, int64_t lower) {
  const int k = blockIdx.y;
  State& s = w.states[k];
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
  if (!last_of(&s.tickets, gridDim.x)) return;
  int64_t ranks[2] = {upper, lower};
  Key prefixes[2] = {-1, -1};  // of what is not sought: no key's
#pragma unroll
  for (int end = 0; end < 2; ++end)
    if (ranks[end] > 0) prefixes[end] = find_bin(w.histogram(k), ranks[end]);
  if (threadIdx.x == 0) {
    for (int end = 0; end < 2; ++end) s.ends[end] = {prefixes[end], ranks[end]};
  }
  clear(w.histogram(k));
}

// The keys of a batch of sampled entries, of which many are under way at once; -1 where there are none.
template <int kBatch>
__device__ void read_sample(const Key* sample, int64_t begin, int64_t size, Key (&keys)[kBatch]) {
#pragma unroll
  for (int e = 0; e < kBatch; ++e) {
    const int64_t i = begin + e * int64_t(blockDim.x) + threadIdx.x;
    keys[e] = i < size ? sample[i] : -1;
  }
}

// The bracket: keys that the sampled entries sought in sample_kernel do not lie outside of. The next bits tell them apart
// well enough: what is left of a bin is narrow, and belongs to the bracket. Only where a bin holds many entries, which may
// all be equal, does the last block find the entry's own key.
template <class D>
__global__ void bracket_kernel(Workspace w, int64_t size, float* values, int64_t* last) {
  constexpr int kBatch = 8, kFirstShift = D::kKeyBits - kBinBits, kBits = kFirstShift < kBinBits ? kFirstShift : kBinBits;
  constexpr int kManyOf = 64;  // many: more than one of so many
  __shared__ unsigned histograms[2][kBins];
  const int k = blockIdx.y;
  State& s = w.states[k];
  const Key* sample = w.sample + int64_t(k) * kSample;
  const auto count = [&](const Key (&keys)[2], auto& sampled, int shift, int bits) {
#pragma unroll
    for (const Key key : sampled)
#pragma unroll
      for (int end = 0; end < 2; ++end)
        if (key >= 0 && key >> shift == keys[end])
          atomicAdd(&histograms[end][(key >> (shift - bits)) & ((1 << bits) - 1)], 1u);
  };
  clear(histograms[0]);
  clear(histograms[1]);
  __syncthreads();
  Key prefixes[2] = {s.ends[0].prefix, s.ends[1].prefix};
  {
    Key sampled[kSamplesPerThread];
    read_sample(sample, int64_t(blockIdx.x) * kThreads * kSamplesPerThread, size, sampled);
    count(prefixes, sampled, kFirstShift, kBits);
  }
  __syncthreads();
  for (int end = 0; end < 2; ++end) add_to(histogram_of_end(w, k, end), histograms[end]);
  if (!last_of(&s.tickets, gridDim.x)) return;

  const bool sought[2] = {prefixes[0] >= 0, prefixes[1] >= 0};
  int64_t ranks[2] = {s.ends[0].rank, s.ends[1].rank};
  int shift = kFirstShift - kBits;
  bool many = false;
#pragma unroll
  for (int end = 0; end < 2; ++end) {
    if (!sought[end]) continue;
    const unsigned long long* histogram = histogram_of_end(w, k, end);
    const int bin = find_bin(histogram, ranks[end]);
    many = many || int64_t(histogram[bin]) * kManyOf > size;
    prefixes[end] = (prefixes[end] << kBits) | bin;
  }
  __syncthreads();  // all have read the histograms
  for (; many && shift > 0; shift -= next_bits(shift)) {
    const int bits = next_bits(shift);
    clear(histograms[0]);
    clear(histograms[1]);
    __syncthreads();
    for (int64_t begin = 0; begin < size; begin += kBatch * kThreads) {
      Key sampled[kBatch];
      read_sample(sample, begin, size, sampled);
      count(prefixes, sampled, shift, bits);
    }
    __syncthreads();
#pragma unroll
    for (int end = 0; end < 2; ++end)
      if (sought[end]) prefixes[end] = (prefixes[end] << bits) | find_bin(histograms[end], ranks[end]);
  }
  if (threadIdx.x == 0) {
    s.hi = sought[0] ? (prefixes[0] << shift) | ((1 << shift) - 1) : INT_MAX;
    s.lo = sought[1] ? prefixes[1] << shift : -1;
    values[k] = INFINITY;  // what nothing survives, should there be no threshold: among NaN
    last[k] = -1;
  }
  for (int end = 0; end < 2; ++end) clear(histogram_of_end(w, k, end));
}

}  // namespace lpk::cuda
