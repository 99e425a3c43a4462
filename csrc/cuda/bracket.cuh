// A bracket around each coefficient's threshold, from a sample.
#pragma once

#include <cmath>

#include "workspace.cuh"

namespace lpk::cuda {

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

// Clears what is counted in, and gathers the sample, if a bracket is sought: a and b are read once for all coefficients.
template <class D>
__device__ void begin_search(const Search& s) {
  using Stored = typename D::Stored;
  struct Pair {
    Stored a, b;
  };
  const Share share{0, blockIdx.x, gridDim.x};
  const int64_t cleared = int64_t(s.count) * kHistograms * kBins;
  for (int64_t i = share.index * kThreads + threadIdx.x; i < cleared; i += share.of * kThreads) s.w.histograms[i] = 0;
  if (blockIdx.x == 0 && threadIdx.x < s.count) {
    s.w.states[threadIdx.x] = {-1, kNoEnd<D>};
    s.values[threadIdx.x] = INFINITY;  // what nothing survives, should there be no threshold: among NaN
    s.last[threadIdx.x] = -1;
  }
  if (s.upper <= 0 && s.lower <= 0) return;
  const auto *a = static_cast<const Stored*>(s.v.a), *b = static_cast<const Stored*>(s.v.b ? s.v.b : s.v.a);
  const auto load = [&](int64_t i) {
    const int64_t from = sample_position(s.v.n, s.size, i);
    return Pair{a[from], b[from]};
  };
  for_each_of(share, s.size, load, [&](const Pair& pair, int64_t i) {
    static_cast<Stored*>(s.w.sample_a)[i] = pair.a;
    static_cast<Stored*>(s.w.sample_b)[i] = pair.b;
  });
}

// Calls body(key) for the sampled entries that are a share.
template <class D, class Body>
__device__ void for_each_sampled(const Search& s, const Share& share, Body body) {
  Vectors sample = s.v;
  sample.a = s.w.sample_a;
  sample.b = s.v.b ? s.w.sample_b : nullptr;
  const float alpha = s.alpha(share.k);
  const auto load = [&](int64_t i) { return D::key(element<D>(sample, alpha, i)); };
  for_each_of(share, s.size, load, [&](Key key, int64_t) { body(key); });
}

template <class D>
constexpr int kFirstShift = D::kKeyBits - kBinBits;
template <class D>
constexpr int kNextBits = kFirstShift<D> < kBinBits ? kFirstShift<D> : kBinBits;

template <class D>
__device__ void count_sample(const Search& s, unsigned* histogram) {
  for_each_share(s.count, [&](const Share& share) {
    clear(histogram);
    __syncthreads();
    for_each_sampled<D>(s, share, [&](Key key) { atomicAdd(&histogram[key >> kFirstShift<D>], 1u); });
    __syncthreads();
    add_to(s.w.histogram(share.k, kOfSample), histogram);
    __syncthreads();
  });
}

// Goes on with both ends by histograms of the next bits: histogram(end).
template <class Histogram>
__device__ void narrow_ends(End (&ends)[kEnds], int bits, Histogram histogram) {
#pragma unroll 1
  for (int end = 0; end < kEnds; ++end) {
    const End own = ends[end];
    if (own.prefix < 0) continue;
    const Bin bin = find_bin(histogram(end), own.rank);
    if (threadIdx.x == 0) ends[end] = {(own.prefix << bits) | bin.index, bin.rank};
  }
  __syncthreads();
}

// What the histogram of the sample's highest bits tells of both ends.
__device__ inline void find_ends(const Search& s, int k, End (&ends)[kEnds]) {
  if (threadIdx.x < kEnds) {
    const int64_t rank = threadIdx.x == 0 ? s.upper : s.lower;
    ends[threadIdx.x] = {rank > 0 ? 0 : -1, rank};
  }
  __syncthreads();
  narrow_ends(ends, kBinBits, [&](int) { return s.w.histogram(k, kOfSample); });
}

// A histogram, for each end, of the next bits of the sampled keys that begin as it does.
template <class D>
__device__ void count_beside(const Search& s, const Share& share, const End (&ends)[kEnds], int shift, int bits,
                             unsigned (*histograms)[kBins]) {
  clear(histograms[0]);
  clear(histograms[1]);
  const Key upper = ends[0].prefix, lower = ends[1].prefix;
  __syncthreads();
  for_each_sampled<D>(s, share, [&](Key key) {
    const int bin = (key >> (shift - bits)) & ((1 << bits) - 1);
    if (key >> shift == upper) atomicAdd(&histograms[0][bin], 1u);
    if (key >> shift == lower) atomicAdd(&histograms[1][bin], 1u);
  });
  __syncthreads();
}

template <class D>
__device__ void count_near_ends(const Search& s, unsigned (*histograms)[kBins]) {
  __shared__ End ends[kEnds];
  for_each_share(s.count, [&](const Share& share) {
    find_ends(s, share.k, ends);
    if (share.is_first() && threadIdx.x < kEnds) s.w.states[share.k].ends[threadIdx.x] = ends[threadIdx.x];
    count_beside<D>(s, share, ends, kFirstShift<D>, kNextBits<D>, histograms);
    for (int end = 0; end < kEnds; ++end) add_to(s.w.histogram(share.k, kOfUpperEnd + end), histograms[end]);
    __syncthreads();
  });
}

// The bracket: keys that the sampled entries sought do not lie outside of. The bits known by now tell them apart well enough:
// what is left of a bin is narrow, and belongs to the bracket. Only where a bin holds many entries, which may all be equal,
// is the entry's own key found.
template <class D>
__device__ void find_bracket(const Search& s, unsigned (*histograms)[kBins]) {
  constexpr int kManyOf = 64;  // many: more than one of so many
  __shared__ End ends[kEnds];
  for_each_share(s.count, [&](const Share& share) {
    if (!share.is_first()) return;
    const int k = share.k;
    const auto histogram = [&](int end) { return s.w.histogram(k, kOfUpperEnd + end); };
    if (threadIdx.x < kEnds) ends[threadIdx.x] = s.w.states[k].ends[threadIdx.x];
    __syncthreads();
    narrow_ends(ends, kNextBits<D>, histogram);
    bool many = false;
    for (int end = 0; end < kEnds; ++end) {
      const Key prefix = ends[end].prefix;
      many = many || (prefix >= 0 && int64_t(histogram(end)[prefix & ((1 << kNextBits<D>) - 1)]) * kManyOf > s.size);
    }
    int shift = kFirstShift<D> - kNextBits<D>;
#pragma unroll 1
    for (; many && shift > 0; shift -= next_bits(shift)) {
      count_beside<D>(s, Share{k, 0, 1}, ends, shift, next_bits(shift), histograms);
      narrow_ends(ends, next_bits(shift), [&](int end) { return histograms[end]; });
    }
    if (threadIdx.x == 0) {
      State& state = s.w.states[k];
      state.hi = ends[0].prefix >= 0 ? (ends[0].prefix << shift) | ((1 << shift) - 1) : kNoEnd<D>;
      state.lo = ends[1].prefix >= 0 ? ends[1].prefix << shift : -1;
    }
    __syncthreads();
  });
}

}  // namespace lpk::cuda
