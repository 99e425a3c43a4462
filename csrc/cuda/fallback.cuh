// Where a bracket does not hold the threshold, or holds too much: its key by histograms of all entries; and where many
// entries have the threshold's key, the last one of them that survives. These kernels are always launched, so that the
// host need not ask, and return at once where nothing is left to do.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kFallbackBlocks = 256;  // for each coefficient

// Calls body(key) for a thread's entries of the tile that begins there.
template <class D, class Body>
__device__ void for_each_key(const Vectors& v, float alpha, int64_t begin, Body body) {
  const Tile<D> tile(v, begin);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e)
    if (tile.exists(e)) body(D::key(v.b ? interpolated<D>(tile.a[e], tile.b[e], alpha) : tile.a[e]));
}

// A histogram of the next bits of all keys that begin with the bits known so far; and what it tells.
template <class D>
__global__ void histogram_kernel(Vectors v, const __grid_constant__ Coefficients alphas, Workspace w) {
  const int k = blockIdx.y;
  State& s = w.states[k];
  if (s.status != kUnknown) return;
  __shared__ unsigned histogram[kBins];
  clear(histogram);
  __syncthreads();
  const int shift = s.shift, bits = next_bits(shift);
  const Key prefix = s.prefix;
  for (int64_t begin = int64_t(blockIdx.x) * kTile; begin < v.n; begin += int64_t(gridDim.x) * kTile)
    for_each_key<D>(v, get(alphas, k), begin, [&](Key key) {
      if (int64_t(key) >> shift == prefix) atomicAdd(&histogram[(key >> (shift - bits)) & ((1 << bits) - 1)], 1u);
    });
  __syncthreads();
  add_to(w.histogram(k), histogram);
  if (!last_of(&s.tickets, gridDim.x)) return;
  int64_t rank = s.rank;
  const int bin = find_bin(w.histogram(k), rank);
  clear(w.histogram(k));
  if (threadIdx.x != 0) return;
  s.rank = rank;
  s.shift = shift - bits;
  s.prefix = (prefix << bits) | bin;
  if (s.shift == 0) {
    s.status = kTied;
    s.key = s.prefix;
  }
}

// How many entries of each tile have the threshold's key; then which of them is the last one that survives.
template <class D>
__global__ void ties_kernel(Vectors v, const __grid_constant__ Coefficients alphas, Workspace w, float* values,
                            int64_t* last) {
  const int k = blockIdx.y;
  State& s = w.states[k];
  if (s.status != kTied) return;
  unsigned* equal = w.equal + k * tiles(v.n);
  const Key key = s.key;
  __shared__ unsigned total;
  for (int64_t t = blockIdx.x; t < tiles(v.n); t += gridDim.x) {
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    unsigned own = 0;
    for_each_key<D>(v, get(alphas, k), t * kTile, [&](Key other) { own += other == key; });
    if (own) atomicAdd(&total, own);
    __syncthreads();
    if (threadIdx.x == 0) equal[t] = total;
    __syncthreads();
  }
  if (!last_of(&s.tickets, gridDim.x)) return;

  __shared__ int64_t tile, rank;  // the tile that holds the last survivor, and which of its entries with this key it is
  if (threadIdx.x == 0) tile = rank = 0;  // where NaN or infinity misled the counts there is none: nobody is sought then
  const int64_t each = (tiles(v.n) + kThreads - 1) / kThreads, first = threadIdx.x * each;
  unsigned long long own = 0;
  for (int64_t t = first; t < first + each && t < tiles(v.n); ++t) own += equal[t];
  find_thread(own, s.rank, [&](int64_t left) {
    int64_t t = first;
    while (left > int64_t(equal[t])) left -= equal[t++];
    tile = t * kTile;
    rank = left;
  });
  // In the tile a thread has neighbouring entries now.
  const auto is_equal = [&](int e) {
    const int64_t i = tile + threadIdx.x * kPerThread + e;
    return i < v.n && D::key(element<D>(v, get(alphas, k), i)) == key;
  };
  own = 0;
  for (int e = 0; e < kPerThread; ++e) own += is_equal(e);
  find_thread(own, rank, [&](int64_t left) {
    int e = 0;
    while (!is_equal(e) || --left > 0) ++e;
    values[k] = D::value(key);
    last[k] = tile + threadIdx.x * kPerThread + e;
    s.status = kDone;
  });
}

}  // namespace lpk::cuda
