// The threshold among the entries that the sweep stored: a histogram of them, a list of those in the bin that holds it, and
// the one of its rank in that list.
#pragma once

#include "verdict.cuh"

namespace lpk::cuda {

constexpr int kFew = 512;  // words that are compared each with each

#ifdef LPK_EMULATED
constexpr int64_t kStoredEach = 64;
#else
constexpr int64_t kStoredEach = 4096;  // stored entries that are worth a block's while, at least
#endif

// Calls body(share) for the shares in the stored entries of coefficients whose threshold is among them.
template <class Body>
__device__ void for_each_share_of_stored(const Search& s, const Verdicts& verdicts, Body body) {
  for_each_share(s.count, [&](Share share) {
    if (verdicts.of[share.k].status != kInBracket) return;
    const int64_t worth = (int64_t(s.w.states[share.k].stored) + kStoredEach - 1) / kStoredEach;
    if (share.of > worth) share.of = worth;
    if (share.index < share.of) body(share);
  });
}

// Calls body(word) for the stored entries that are a share.
template <class Body>
__device__ void for_each_stored(const Search& s, const Share& share, Body body) {
  const Word* stored = s.w.stored + share.k * s.w.room;
  const auto load = [&](int64_t i) { return stored[i]; };
  for_each_of(share, int64_t(s.w.states[share.k].stored), load, [&](Word word, int64_t) { body(word); });
}

__device__ inline void count_stored(const Search& s, const Verdicts& verdicts, unsigned* histogram) {
  for_each_share_of_stored(s, verdicts, [&](const Share& share) {
    const Word first = s.w.states[share.k].first_word();
    const int shift = verdicts.of[share.k].shift;
    clear(histogram);
    __syncthreads();
    for_each_stored(s, share, [&](Word word) { atomicAdd(&histogram[(word - first) >> shift], 1u); });
    __syncthreads();
    add_to(s.w.histogram(share.k, kOfStored), histogram);
    __syncthreads();
  });
}

__device__ inline void list_stored(const Search& s, const Verdicts& verdicts) {
  for_each_share_of_stored(s, verdicts, [&](const Share& share) {
    State& state = s.w.states[share.k];
    const Word first = state.first_word();
    const Verdict& verdict = verdicts.of[share.k];
    const auto bin = Word(find_bin(s.w.histogram(share.k, kOfStored), verdict.rank).index);
    Word* listed = s.w.listed + share.k * s.w.room;
    for_each_stored(s, share, [&](Word word) {
      if ((word - first) >> verdict.shift == bin) listed[atomicAdd(&state.listed, 1ull)] = word;
    });
  });
}

// Calls found(word) for the word of `rank` (from 1, the largest first) among few, which no two threads share.
template <class Found>
__device__ void select_among_few(Word* few, const Word* listed, int size, int64_t rank, Found found) {
  for (int i = threadIdx.x; i < size; i += kThreads) few[i] = listed[i];
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < size; i += kThreads) {
    int larger = 0;
#pragma unroll 4
    for (int j = 0; j < size; ++j) larger += few[j] > few[i];
    if (larger == rank - 1) found(few[i]);
  }
}

// The same among many, in which all but the lowest `shift` bits are `prefix`; words count from `first`.
template <class Found>
__device__ void select_among_many(unsigned* histogram, const Word* listed, int64_t size, Word first, Word prefix, int shift,
                                  int64_t rank, Found found) {
#pragma unroll 1
  while (shift > 0) {
    const int bits = next_bits(shift);
    clear(histogram);
    __syncthreads();
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < size; i += kThreads) {
      const Word x = listed[i] - first;
      if (x >> shift == prefix) atomicAdd(&histogram[(x >> (shift - bits)) & ((1 << bits) - 1)], 1u);
    }
    __syncthreads();
    const Bin bin = find_bin(histogram, rank);
    prefix = (prefix << bits) | Word(bin.index);
    rank = bin.rank;
    shift -= bits;
  }
  if (threadIdx.x == 0) found(first + prefix);
}

template <class D>
__device__ void select_listed(const Search& s, const Verdicts& verdicts, unsigned* histogram, Word* few) {
  for_each_share(s.count, [&](const Share& share) {
    const int k = share.k;
    const Verdict& verdict = verdicts.of[k];
    if (!share.is_first() || verdict.status != kInBracket) return;
    const auto size = int64_t(s.w.states[k].listed);
    const Word first = s.w.states[k].first_word(), *listed = s.w.listed + k * s.w.room;
    const Bin bin = find_bin(s.w.histogram(k, kOfStored), verdict.rank);
    const auto found = [&](Word word) {
      s.values[k] = D::value(key_of(word));
      s.last[k] = index_of(word);
    };
    if (size <= kFew) {
      select_among_few(few, listed, int(size), bin.rank, found);
    } else {
      select_among_many(histogram, listed, size, first, Word(bin.index), verdict.shift, bin.rank, found);
    }
    __syncthreads();
  });
}

}  // namespace lpk::cuda
