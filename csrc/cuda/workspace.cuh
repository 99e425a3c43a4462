// What the search for thresholds keeps on the device between its kernels.
#pragma once

#include "block.cuh"

namespace lpk::cuda {

constexpr int kSample = 1 << 17;

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

enum Status : int {
  kUnknown = 0,    // no histogram nor bracket tells yet where the threshold is
  kInBracket = 1,  // it is among the stored entries
  kTied = 2,       // its key is known, the index of the last survivor is not
  kDone = 3,
};

// An end of a bracket that is sought: the bits of its key that are known, and its rank among the entries that share them.
struct End {
  Key prefix;
  int64_t rank;
};

// What is known about one coefficient. All zero to begin with.
struct State {
  End ends[2];                               // the upper one, and the lower
  Key lo, hi;                                // the bracket: -1 and INT_MAX where it has no end
  unsigned long long above_hi, at_hi, at_lo;
  unsigned long long stored;                 // entries between lo and hi, even those that found no room
  unsigned long long listed;                 // those of the bin that holds the threshold
  int status;
  int shift;                                 // of the histogram: an entry's bin is its key, or word, >> shift
  Key prefix;                                // kUnknown: the bits of the threshold's key that are known, key >> shift
  int64_t rank;                              // the threshold's among the entries that it is sought in, from 1
  Key key;                                   // kTied
  unsigned tickets;

  // The words strictly between lo and hi: their distances from the first one are what the histogram is of.
  __device__ Word first_word() const { return Word(lo + 1) << kIndexBits; }
  __device__ Word words() const { return (Word(hi) << kIndexBits) - first_word(); }
};

struct Workspace {
  State* states;
  unsigned long long* histograms;  // [count][2][kBins]: of both ends of a bracket; later the first is used alone
  unsigned* equal;                 // [count][tiles]
  Key* sample;                     // [count][kSample]
  Word* stored;                    // [count][room]
  Word* listed;                    // [count][room]
  int64_t room;                    // 0 for a vector that is too long for words

  __device__ unsigned long long* histogram(int k) const { return histograms + int64_t(k) * 2 * kBins; }
};

// Divides the memory for `count` coefficients into parts; returns how many bytes it takes. Without memory it only counts.
inline int64_t divide(Workspace& w, void* memory, int64_t n, int count) {
  int64_t bytes = 0;
  const auto take = [&](auto*& part, int64_t numbers) {
    using Number = std::remove_reference_t<decltype(*part)>;
    if (memory) part = reinterpret_cast<Number*>(static_cast<char*>(memory) + bytes);
    bytes += (numbers * int64_t(sizeof(Number)) + 255) / 256 * 256;
  };
  w.room = n < kMostIndexed ? n / 40 + 65536 : 0;
  take(w.states, count);
  take(w.histograms, int64_t(count) * 2 * kBins);
  take(w.equal, count * tiles(n));
  take(w.sample, int64_t(count) * kSample);
  take(w.stored, count * w.room);
  take(w.listed, count * w.room);
  return bytes;
}

}  // namespace lpk::cuda
