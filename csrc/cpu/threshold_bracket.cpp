// Thresholds by brackets: a sample of the positions gives one for each coefficient, and one sweep over a and b counts
// what lies above each and stores the few keys inside, among which the threshold is selected.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "bracket.h"
#include "parallel.h"
#include "threshold.h"

namespace lpk::cpu {
namespace {

constexpr int64_t kSample = 32768;      // most positions that choose the brackets: a 64th of all, but
constexpr int64_t kLeastSample = 1024;  // at least these
constexpr int64_t kStoredShare = 16;    // a bracket with more than n / 16 + kSample magnitudes inside is given up

int64_t sample_size(int64_t n) { return std::min(n, std::clamp(n / 64, kLeastSample, kSample)); }

// The sampled entries of a and b, gathered once for all coefficients.
struct Sample {
  std::vector<char> a, b;
  int64_t n;
};

template <class Bits>
Sample gather(const Vectors& v) {
  const std::vector<int64_t> positions = sample_positions(v.n);
  const int64_t n = int64_t(positions.size());
  Sample sample{std::vector<char>(n * sizeof(Bits)), std::vector<char>(v.b ? n * sizeof(Bits) : 0), n};
  parallel_for(n, v.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      reinterpret_cast<Bits*>(sample.a.data())[i] = static_cast<const Bits*>(v.a)[positions[i]];
      if (v.b) reinterpret_cast<Bits*>(sample.b.data())[i] = static_cast<const Bits*>(v.b)[positions[i]];
    }
  });
  return sample;
}

Bracket bracket(const Sample& sample, const Vectors& v, float alpha, int64_t keep) {
  const Source source{sample.a.data(), v.b ? sample.b.data() : nullptr, alpha, 1.0f - alpha};
  std::vector<Key> keys(sample.n);
  loops(v.dtype).keys(keys.data(), source, 0, sample.n);
  Bracket result = enclosing(keys, double(keep) / double(v.n));
  result.alpha = source.alpha;
  result.beta = source.beta;
  return result;
}

// Keys stored by one thread for one coefficient; grows, never past what a bracket may hold.
struct Store {
  std::unique_ptr<Key[]> keys;
  int64_t size = 0, capacity = 0;

  void reserve(int64_t wanted) {
    if (wanted <= capacity) return;
    const int64_t larger = std::max(wanted, capacity + capacity / 2);
    std::unique_ptr<Key[]> moved(new Key[larger]);
    std::copy(keys.get(), keys.get() + size, moved.get());
    keys = std::move(moved);
    capacity = larger;
  }
};

class Sweep {
 public:
  Sweep(const Vectors& v, std::vector<Bracket> brackets)
      : v_(v),
        brackets_(std::move(brackets)),
        count_(int(brackets_.size())),
        threads_(int(std::max<int64_t>(1, std::min<int64_t>(v.threads, chunks(v.n))))),
        tallies_(chunks(v.n) * count_),
        stores_(threads_ * count_),
        given_up_(count_) {}

  void run() {
    const int64_t limit = v_.n / kStoredShare + kSample;
    const int64_t expected = int64_t(kBracketSigmas * double(v_.n) / std::sqrt(double(sample_size(v_.n))) / threads_);
    std::vector<std::atomic<bool>> given_up(count_);
    std::atomic<bool> finite{true};
    parallel_for(chunks(v_.n), threads_, [&](int64_t begin, int64_t end, int thread) {
      std::vector<Key*> to(count_);
      for (int64_t c = begin; c < end; ++c) {
        const int64_t n = std::min(kChunk, v_.n - c * kChunk);
        for (int k = 0; k < count_; ++k) {
          Store& store = stores_[thread * count_ + k];
          if (store.size > limit) given_up[k] = true;
          if (!given_up[k]) store.reserve(std::max(store.size + n + 16, c == begin ? expected : 0));
          to[k] = given_up[k] ? nullptr : store.keys.get() + store.size;
        }
        Tally* tallies = &tallies_[c * count_];
        loops(v_.dtype).sweep(v_.a, v_.b, c * kChunk, n, brackets_.data(), count_, tallies, to.data());
        for (int k = 0; k < count_; ++k) {
          Store& store = stores_[thread * count_ + k];
          if (to[k] != nullptr) store.size = to[k] - store.keys.get();
          if (tallies[k].not_finite) finite = false;
        }
      }
    });
    if (!finite)
      for (const Bracket& b : brackets_) throw_if_not_finite(b.alpha);
    for (int k = 0; k < count_; ++k) given_up_[k] = given_up[k];
  }

  // The entry of rank `keep` for coefficient k; found.done is false where the bracket does not tell.
  Found find(int k, int64_t keep) const {
    int64_t above_hi = 0, from_hi = 0, above_lo = 0, from_lo = 0;
    for (int64_t c = 0; c < chunks(v_.n); ++c) {
      const Tally& t = tally(c, k);
      above_hi += t.above_hi;
      from_hi += t.from_hi;
      above_lo += t.above_lo;
      from_lo += t.from_lo;
    }
    Found found;
    if (keep <= above_hi || keep > from_lo) return found;
    if (keep <= from_hi) {
      found = {brackets_[k].hi, keep - above_hi, -1, 0, true};
      locate(found, chunks(v_.n), [&](int64_t c) { return tally(c, k).from_hi - tally(c, k).above_hi; });
    } else if (keep > above_lo) {
      found = {brackets_[k].lo, keep - above_lo, -1, 0, true};
      locate(found, chunks(v_.n), [&](int64_t c) { return tally(c, k).from_lo - tally(c, k).above_lo; });
    } else if (!given_up_[k]) {
      found = among_stored(k, keep - from_hi);
    }
    return found;
  }

 private:
  const Tally& tally(int64_t chunk, int k) const { return tallies_[chunk * count_ + k]; }

  // The stored keys stand in index order, thread after thread: the tie that survives last is found by counting there.
  Found among_stored(int k, int64_t rank) const {
    std::vector<Piece> pieces;
    for (int t = 0; t < threads_; ++t) pieces.push_back({store(t, k).keys.get(), store(t, k).size});
    Found found = key_of_rank(pieces, rank);
    int thread = 0;
    int64_t at = 0;
    locate(found, chunks(v_.n), [&](int64_t c) {
      while (c >= part(chunks(v_.n), threads_, thread + 1)) ++thread, at = 0;
      const int64_t inside = std::max(0, tally(c, k).above_lo - tally(c, k).from_hi);
      const Key* here = store(thread, k).keys.get() + at;
      at += inside;
      return std::count(here, here + inside, found.key);
    });
    return found;
  }

  const Store& store(int thread, int k) const { return stores_[thread * count_ + k]; }

  void throw_if_not_finite(float alpha) const {
    for (int64_t c = 0; c < chunks(v_.n); ++c)
      for (int k = 0; k < count_; ++k)
        if (tally(c, k).not_finite && brackets_[k].alpha == alpha) throw_not_finite(v_, alpha);
  }

  const Vectors& v_;
  std::vector<Bracket> brackets_;
  int count_;
  int threads_;
  std::vector<Tally> tallies_;
  std::vector<Store> stores_;
  std::vector<char> given_up_;
};

}  // namespace

std::vector<Threshold> by_bracket(const Vectors& v, const std::vector<float>& alphas, int64_t keep) {
  const int count = int(alphas.size());
  const Sample sample = v.dtype == kFloat32 ? gather<uint32_t>(v) : gather<uint16_t>(v);
  std::vector<Bracket> brackets(count);
  parallel_for(count, v.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; ++k) brackets[k] = bracket(sample, v, alphas[k], keep);
  });
  Sweep sweep(v, brackets);
  sweep.run();
  std::vector<Found> found(count);
  std::vector<Threshold> thresholds(count);
  parallel_for(count, v.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t k = begin; k < end; ++k) {
      found[k] = sweep.find(int(k), keep);
      if (found[k].done) thresholds[k] = {value_of(found[k].key, v.dtype), position(v, alphas[k], found[k])};
    }
  });
  for (int k = 0; k < count; ++k)
    if (!found[k].done) thresholds[k] = by_histogram(v, alphas[k], keep);
  return thresholds;
}

std::vector<int64_t> sample_positions(int64_t n) {
  const int64_t count = sample_size(n);
  std::vector<int64_t> positions(count);
  uint64_t state = 0x9e3779b97f4a7c15;  // splitmix64: a plain stride would look at the same channel again and again
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    const int64_t begin = part(n, int(count), int(i)), end = part(n, int(count), int(i) + 1);
    positions[i] = begin + int64_t(z % uint64_t(end - begin));
  }
  return positions;
}

}  // namespace lpk::cpu
