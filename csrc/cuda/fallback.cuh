// Where a bracket does not hold the threshold, or holds too much: its key by histograms of all entries; and where many
// entries have the threshold's key, the last one of them that survives.
#pragma once

#include "verdict.cuh"

namespace lpk::cuda {

// Calls body(share) for the shares in the coefficients that are pending.
template <class Body>
__device__ void for_each_pending(const Verdicts& verdicts, Body body) {
  for_each_share(verdicts.pending_count, [&](Share share) {
    share.k = verdicts.pending[share.k];
    body(share);
  });
}

// Calls body(key) for a thread's entries of a tile.
template <class D, class Body>
__device__ void for_each_key(const Search& s, int k, int64_t tile_index, Body body) {
  const Tile<D> tile(s.v, tile_index * kTile);
  const float alpha = s.alpha(k);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e)
    if (tile.exists(e)) body(D::key(s.v.b ? interpolated<D>(tile.a[e], tile.b[e], alpha) : tile.a[e]));
}

// A histogram of the next bits of all keys that begin with the bits known so far.
template <class D>
__device__ void count_keys(const Search& s, const Verdicts& verdicts, int round, unsigned* histogram) {
  for_each_pending(verdicts, [&](const Share& share) {
    const Verdict& verdict = verdicts.of[share.k];
    if (verdict.status != kUnknown) return;
    const int shift = verdict.shift, bits = next_bits(shift);
    const Key prefix = verdict.prefix;
    __syncthreads();
    clear(histogram);
    __syncthreads();
    for (int64_t tile = share.index; tile < tiles(s.v.n); tile += share.of)
      for_each_key<D>(s, share.k, tile, [&](Key key) {
        if (key >> shift == prefix) atomicAdd(&histogram[(key >> (shift - bits)) & ((1 << bits) - 1)], 1u);
      });
    __syncthreads();
    add_to(s.w.histogram(share.k, kOfKeys + round), histogram);
  });
}

// What it tells, noted by each block for its own coefficients.
__device__ inline void narrow(const Search& s, Verdicts& verdicts, int round) {
  for_each_pending(verdicts, [&](const Share& share) {
    Verdict& verdict = verdicts.of[share.k];
    if (verdict.status != kUnknown) return;
    const Bin bin = find_bin(s.w.histogram(share.k, kOfKeys + round), verdict.rank);
    if (threadIdx.x == 0) {
      const int bits = next_bits(verdict.shift);
      const Status status = verdict.shift == bits ? kTied : kUnknown;
      verdict = {status, bin.rank, (verdict.prefix << bits) | bin.index, verdict.shift - bits};
    }
    __syncthreads();
  });
}

// How many entries of each tile have the threshold's key.
template <class D>
__device__ void count_ties(const Search& s, const Verdicts& verdicts) {
  __shared__ unsigned total;
  for_each_pending(verdicts, [&](const Share& share) {
    const Key key = verdicts.of[share.k].prefix;
    for (int64_t tile = share.index; tile < tiles(s.v.n); tile += share.of) {
      if (threadIdx.x == 0) total = 0;
      __syncthreads();
      unsigned own = 0;
      for_each_key<D>(s, share.k, tile, [&](Key other) { own += other == key; });
      if (own) atomicAdd(&total, own);
      __syncthreads();
      if (threadIdx.x == 0) s.w.equal[share.k * tiles(s.v.n) + tile] = total;
      __syncthreads();
    }
  });
}

// Which of them is the last one that survives.
template <class D>
__device__ void find_last(const Search& s, const Verdicts& verdicts) {
  __shared__ int64_t tile, rank;  // the tile that holds it, and which of its entries with this key it is
  for_each_pending(verdicts, [&](const Share& share) {
    if (!share.is_first()) return;
    const int k = share.k;
    const unsigned* equal = s.w.equal + k * tiles(s.v.n);
    const Key key = verdicts.of[k].prefix;
    if (threadIdx.x == 0) tile = rank = 0;  // where NaN or infinity misled the counts there is none: nobody is sought then
    const int64_t each = (tiles(s.v.n) + kThreads - 1) / kThreads, first = threadIdx.x * each;
    unsigned long long own = 0;
    for (int64_t t = first; t < first + each && t < tiles(s.v.n); ++t) own += equal[t];
    __syncthreads();
    find_thread(own, verdicts.of[k].rank, [&](int64_t left) {
      int64_t t = first;
      while (left > int64_t(equal[t])) left -= equal[t++];
      tile = t * kTile;
      rank = left;
    });
    // In the tile a thread has neighbouring entries now.
    const auto is_equal = [&](int e) {
      const int64_t i = tile + threadIdx.x * kPerThread + e;
      return i < s.v.n && D::key(element<D>(s.v, s.alpha(k), i)) == key;
    };
    own = 0;
    for (int e = 0; e < kPerThread; ++e) own += is_equal(e);
    find_thread(own, rank, [&](int64_t left) {
      int e = 0;
      while (!is_equal(e) || --left > 0) ++e;
      s.values[k] = D::value(key);
      s.last[k] = tile + threadIdx.x * kPerThread + e;
    });
  });
}

}  // namespace lpk::cuda
