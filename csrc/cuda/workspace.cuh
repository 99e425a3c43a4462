// What the search for thresholds is given, and what it keeps on the device.
#pragma once

#include <algorithm>

#include "block.cuh"
#include "search.h"

namespace lpk::cuda {

// Entries of the sample. More of them make brackets narrower, and each entry inside costs more where it may be inside several.
inline int64_t sample_size(int64_t n, int count) {
  const int64_t most = count == 1 ? 1 << 17 : 1 << 18;
  return std::min(n, most);
}

// An entry of a vector: its key, and after it its index counted backwards. Of two words the larger one is that of the entry
// that survives longer: the larger magnitude, or the smaller index.
using Word = unsigned long long;
constexpr int kIndexBits = 33;
constexpr int64_t kMostIndexed = int64_t(1) << kIndexBits;  // longer vectors are searched without words

__host__ __device__ inline Word word_of(Key key, int64_t index) {
  return (Word(key) << kIndexBits) | Word(kMostIndexed - 1 - index);
}
__device__ inline Key key_of(Word word) { return Key(word >> kIndexBits); }
__device__ inline int64_t index_of(Word word) { return kMostIndexed - 1 - int64_t(word & Word(kMostIndexed - 1)); }

// How many stored entries there is room for, beside a 64th of the vector; and of a vector that is stored wholly, without a
// bracket, where there is one coefficient.
#ifdef LPK_EMULATED
constexpr int64_t kSpareRoom = 256, kStoredWholly = 256;
#else
constexpr int64_t kSpareRoom = 65536, kStoredWholly = 4096;
#endif
static_assert(kStoredWholly <= kSpareRoom);

// An end of a bracket: the bits of its key that are known, -1 where it is not sought, and its rank among the sampled entries that
// share them. Both ends are found alike: the bin of their highest bits in a histogram of the sample, then of the next bits among
// the entries that share these.
constexpr int kEnds = 2;
struct End {
  Key prefix;
  int64_t rank;
};

// Where a bracket has no upper end; its magnitude is NaN.
template <class D>
constexpr Key kNoEnd = Key((1u << D::kKeyBits) - 1);

// What is found out about one coefficient.
struct State {
  Key lo, hi;                                // the bracket: -1 and kNoEnd where it has no end
  unsigned long long above_hi, at_hi, at_lo;
  unsigned long long stored;                 // entries between lo and hi, even those that found no room
  unsigned long long listed;                 // those of the bin that holds the threshold
  End ends[kEnds];                           // by the highest bits

  // The words strictly between lo and hi: their distances from the first one are what the histogram is of.
  __device__ Word first_word() const { return Word(lo + 1) << kIndexBits; }
  __device__ Word words() const { return (Word(hi) << kIndexBits) - first_word(); }
  // A word's bin is its distance from the first one >> shift().
  __device__ int shift() const {
    int shift = 0;
    while (((words() - 1) >> shift) >= kBins) ++shift;
    return shift;
  }
};

// Each histogram is counted once in a search: what all blocks read is written by none of them meanwhile.
enum Histogram : int {
  kOfSample = 0,                                    // the highest bits of the sampled keys
  kOfUpperEnd = 1,                                  // the next ones, near either end of the bracket
  kOfLowerEnd = 2,
  kOfStored = 3,                                    // the stored words
  kOfKeys = 4,                                      // all keys, in rounds
  kHistograms = kOfKeys + (31 + kBinBits - 1) / kBinBits,
};

struct Workspace {
  State* states;                   // [count]
  unsigned long long* histograms;  // [count][kHistograms][kBins]
  long long* stamps;               // [kMostStamps]
  unsigned* equal;                 // [count][tiles]
  void *sample_a, *sample_b;       // [sample_size]
  Word* stored;                    // [count][room]
  Word* listed;                    // [count][room]
  float* values;                   // [count]: for thresholds that nobody else is given
  int64_t* last;
  int64_t room;                    // 0 for a vector that is too long for words

  __device__ unsigned long long* histogram(int k, int which) const {
    return histograms + (int64_t(k) * kHistograms + which) * kBins;
  }
};

// Divides the memory for `count` coefficients into parts; returns how many bytes it takes. Without memory it only counts.
inline int64_t divide(Workspace& w, void* memory, int64_t n, int count) {
  int64_t bytes = 0;
  const auto take = [&](auto*& part, int64_t numbers) {
    using Number = std::remove_reference_t<decltype(*part)>;
    if (memory) part = reinterpret_cast<Number*>(static_cast<char*>(memory) + bytes);
    bytes += (numbers * int64_t(sizeof(Number)) + 255) / 256 * 256;
  };
  auto *a = reinterpret_cast<float*>(w.sample_a), *b = a;
  w.room = n < kMostIndexed ? std::min(n, n / 64 + kSpareRoom) : 0;
  take(w.states, count);
  take(w.histograms, int64_t(count) * kHistograms * kBins);
  take(w.stamps, kMostStamps);
  take(w.values, count);
  take(w.last, count);
  take(w.equal, count * tiles(n));
  take(a, sample_size(n, count));
  take(b, sample_size(n, count));
  take(w.stored, count * w.room);
  take(w.listed, count * w.room);
  w.sample_a = a;
  w.sample_b = b;
  return bytes;
}

// A search as its kernel is given it.
struct Search {
  Vectors v;
  Coefficients alphas;
  int count;     // of the coefficients
  int64_t keep;
  int64_t size;  // of the sample
  int64_t upper, lower;  // ranks in the sample, from the top, between which the threshold should be; 0: none is sought
  Workspace w;
  float* values;
  int64_t* last;
  Cut cut;

  // Without b it reads as zeros: x = fma(1, a, 0).
  __device__ float alpha(int k) const { return v.b ? get(alphas, k) : 1.0f; }
};

// A block's share in what all blocks do for one coefficient: the index-th of `of` shares. The first one does alone what is
// done once.
struct Share {
  int k;
  int64_t index, of;

  __device__ bool is_first() const { return index == 0; }
};

// Blocks are shared out among `count` coefficients. Calls body(share), once where there are as many blocks.
template <class Body>
__device__ void for_each_share(int count, Body body) {
  const int blocks = int(gridDim.x), block = int(blockIdx.x);
  for (int k = block % count; k < count; k += blocks)
    body(Share{k, block / count, blocks > k ? (blocks - 1 - k) / count + 1 : 1});
}

// Calls body(load(i), i) for the entries i < size that are a share; several loads are under way at once.
template <class Load, class Body>
__device__ void for_each_of(const Share& share, int64_t size, Load load, Body body) {
  constexpr int kAtOnce = 4;
  const int64_t step = share.of * kThreads;
  for (int64_t first = share.index * kThreads + threadIdx.x; first < size; first += kAtOnce * step) {
    decltype(load(first)) loaded[kAtOnce];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (first + e * step < size) loaded[e] = load(first + e * step);
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (first + e * step < size) body(loaded[e], first + e * step);
  }
}

}  // namespace lpk::cuda
