// Threaded passes over a vector that is cut at a threshold.
#pragma once

#include <atomic>

#include "operations.h"
#include "parallel.h"

namespace lpk::cpu {

// Outputs larger than this are written past the cache: they would only push out what the caller still needs.
constexpr int64_t kStreamBytes = int64_t(4) << 20;

// A threshold in keys: before position `split` the entries survive whose keys are `key` or more, from there on those whose
// keys are more.
struct Cut {
  Key key;
  int64_t split;
};

inline Cut cut(const Threshold& threshold, Dtype dtype) {
  DefaultFloatingPoint environment;
  const Key key = key_floor(threshold.value, dtype);
  const bool exact = value_of(key, dtype) == threshold.value;
  return {key, exact ? threshold.last + 1 : 0};
}

// body(offset, count, key) for first..stop, with the key that survivors must exceed: up to position `last` an entry equal
// to the threshold survives, behind it it does not. The body returns false where it met a NaN or an infinity.
template <class Body>
bool on_both_sides(const Cut& at, int64_t first, int64_t stop, Body&& body) {
  const int64_t middle = std::min(std::max(at.split, first), stop);
  const bool before = first >= middle || body(first, middle - first, at.key - 1);
  const bool behind = middle >= stop || body(middle, stop - middle, at.key);
  return before && behind;
}

// The same for pieces of 0..n, on v.threads threads. Throws where one met a NaN or an infinity.
template <class Body>
void for_pieces(const Vectors& v, float alpha, const Threshold& threshold, Body&& body) {
  const Cut at = cut(threshold, v.dtype);
  std::atomic<bool> finite{true};
  parallel_for(chunks(v.n), v.threads, [&](int64_t begin, int64_t end, int) {
    const int64_t first = begin * kChunk, stop = std::min(end * kChunk, v.n);
    if (!on_both_sides(at, first, stop, body)) finite = false;
  });
  if (!finite) throw_not_finite(v, alpha);
}

}  // namespace lpk::cpu
