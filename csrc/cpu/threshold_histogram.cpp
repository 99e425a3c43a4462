// The threshold by two passes that need no luck: a histogram of the keys' high bits, then one of the low bits in the
// bin found.
#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "threshold.h"

namespace lpk::cpu {
namespace {

// The bin that holds the entry of this rank, and the rank within the bin.
std::pair<Key, int64_t> bin_of(const std::vector<int64_t>& counts, int64_t rank) {
  Key bin = Key(counts.size()) - 1;
  for (; rank > counts[bin]; --bin) rank -= counts[bin];
  return {bin, rank};
}

}  // namespace

std::vector<int64_t> histogram(const Vectors& v, float alpha, int bins, int shift, Key prefix, int prefix_shift) {
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(v.threads, chunks(v.n))));
  std::vector<std::vector<int64_t>> counts(threads);
  std::atomic<bool> finite{true};
  parallel_for(chunks(v.n), threads, [&](int64_t begin, int64_t end, int thread) {
    std::vector<Key> keys(kChunk);
    auto& mine = counts[thread];
    mine.assign(bins, 0);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t count = std::min(kChunk, v.n - c * kChunk);
      if (!loops(v.dtype).keys(keys.data(), source(v, alpha), c * kChunk, count)) finite = false;
      for (int64_t i = 0; i < count; ++i)
        if ((int64_t(keys[i]) >> prefix_shift) == prefix) ++mine[(keys[i] >> shift) & (bins - 1)];
    }
  });
  if (!finite) throw_not_finite(v, alpha);
  for (int t = 1; t < threads; ++t)
    for (int i = 0; i < bins; ++i) counts[0][i] += counts[t][i];
  return counts[0];
}

Threshold by_histogram(const Vectors& v, float alpha, int64_t keep) {
  constexpr int kBits = 16;
  const auto [high, rank] = bin_of(histogram(v, alpha, 1 << (31 - kBits), kBits, 0, 31), keep);
  const auto [low, ties] = bin_of(histogram(v, alpha, 1 << kBits, 0, high, kBits), rank);
  Found found{Key((high << kBits) | low), ties};
  std::vector<int32_t> equal(chunks(v.n));
  parallel_for(chunks(v.n), v.threads, [&](int64_t begin, int64_t end, int) {
    std::vector<Key> keys(kChunk);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t count = std::min(kChunk, v.n - c * kChunk);
      loops(v.dtype).keys(keys.data(), source(v, alpha), c * kChunk, count);
      equal[c] = int32_t(std::count(keys.begin(), keys.begin() + count, found.key));
    }
  });
  locate(found, chunks(v.n), [&](int64_t c) { return equal[c]; });
  return {value_of(found.key, v.dtype), position(v, alpha, found)};
}

}  // namespace lpk::cpu
