// The keep-th largest magnitude of an interpolation, exactly and without sorting, for many coefficients at once.
//
// A sample of the positions gives, for each coefficient, a bracket of magnitudes that holds the threshold unless luck
// was very bad. One sweep over a and b then counts, for all coefficients, what lies above each bracket and stores the
// few magnitudes inside it, among which the threshold is selected. (It interpolates only what is near the brackets: on
// which side of them an interpolation is, its two elements mostly tell.) Where a bracket missed, or too many magnitudes lie
// strictly inside it, two histogram passes find the threshold whatever the data are.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "operations.h"
#include "parallel.h"

namespace lpk::cpu {
namespace {

constexpr int64_t kSample = 32768;        // most positions that choose the brackets: a 64th of all, but
constexpr int64_t kLeastSample = 1024;    // at least these
constexpr double kSigmas = 4.5;           // half the bracket's width, in standard deviations of the sample's rank
constexpr int64_t kDirect = 8192;         // below this, all magnitudes are simply selected from
constexpr int64_t kFew = 4096;            // so many keys, or fewer, are selected from without a sample
constexpr int64_t kFewSampled = 1024;
constexpr int64_t kStoredShare = 16;      // a bracket with more than n / 16 + kSample magnitudes inside is given up

enum class Selection { kAuto, kBracket, kHistogram };
std::atomic<Selection> selection{Selection::kAuto};

// Where the threshold lies: its key, and which of the entries with that key, counted from 1 in index order, survives last.
struct Found {
  Key key = 0;
  int64_t ties = 0;
  int64_t chunk = -1;   // the chunk that holds that entry, and
  int64_t before = 0;   // how many entries with that key stand before the chunk (-1: chunk not known yet)
  bool done = false;
};

// Keys that lie one after the other.
struct Piece {
  const Key* keys;
  int64_t size;
};

Found key_of_rank(const std::vector<Piece>& pieces, int64_t rank);

int64_t sample_size(int64_t n) { return std::min(n, std::clamp(n / 64, kLeastSample, kSample)); }

// The keys whose ranks in a sample enclose a share of them; the ends of the key range where there is no such key.
Bracket enclosing(std::vector<Key>& sample, double share) {
  const auto size = int64_t(sample.size());
  const double width = kSigmas * std::sqrt(double(size) * share * (1.0 - share)) + 2.0;
  const auto above = int64_t(std::floor(share * double(size) - width));
  const auto below = int64_t(std::ceil(share * double(size) + width));
  Bracket result{1.0f, 0.0f, -1, std::numeric_limits<Key>::max(), false};
  if (above >= 0) result.hi = key_of_rank({{sample.data(), size}}, above + 1).key;
  if (below < size) result.lo = key_of_rank({{sample.data(), size}}, below + 1).key;
  result.tied = std::count(sample.begin(), sample.end(), result.lo) > 1 ||
                std::count(sample.begin(), sample.end(), result.hi) > 1;
  return result;
}

Found select(Key* begin, Key* end, int64_t rank) {
  std::nth_element(begin, begin + (rank - 1), end, std::greater<Key>());
  const Key key = begin[rank - 1];
  const int64_t above = std::count_if(begin, end, [=](Key k) { return k > key; });
  return {key, rank - above, -1, 0, true};
}

// The entry of this rank, counted from 1, the largest first, among the keys of all pieces. Where they are many, a sample
// of them gives a bracket, too, which leaves few to select from.
Found key_of_rank(const std::vector<Piece>& pieces, int64_t rank) {
  int64_t n = 0;
  for (const Piece& piece : pieces) n += piece.size;
  if (n > kFew) {
    std::vector<Key> sample;
    const int64_t step = n / kFewSampled;
    int64_t next = step / 2;
    for (const Piece& piece : pieces) {
      for (; next < piece.size; next += step) sample.push_back(piece.keys[next]);
      next -= piece.size;
    }
    const Bracket bracket = enclosing(sample, double(rank) / double(n));
    const std::unique_ptr<Key[]> inside(new Key[n + kChunk]);
    Key* end = inside.get();
    int64_t from_hi = 0, above_lo = 0;
    for (const Piece& piece : pieces) {
      for (int64_t at = 0; at < piece.size; at += kChunk) {
        Tally tally;
        loops(kFloat32).sweep(piece.keys, nullptr, at, std::min(kChunk, piece.size - at), &bracket, 1, &tally, &end);
        from_hi += tally.from_hi;
        above_lo += tally.above_lo;
      }
    }
    const int64_t size = end - inside.get();
    if (from_hi < rank && rank <= above_lo && size <= n / 2) return key_of_rank({{inside.get(), size}}, rank - from_hi);
  }
  std::vector<Key> keys;
  keys.reserve(n);
  for (const Piece& piece : pieces) keys.insert(keys.end(), piece.keys, piece.keys + piece.size);
  return select(keys.data(), keys.data() + n, rank);
}

// The position of the entry that `found` describes: the chunk is scanned again.
int64_t position(const Vectors& v, float alpha, const Found& found) {
  std::vector<Key> keys(kChunk);
  const int64_t offset = found.chunk * kChunk, count = std::min(kChunk, v.n - offset);
  loops(v.dtype).keys(keys.data(), source(v, alpha), offset, count);
  int64_t left = found.ties - found.before;
  for (int64_t i = 0; i < count; ++i)
    if (keys[i] == found.key && --left == 0) return offset + i;
  throw std::invalid_argument("a weight was changed while the kernel ran");
}

// Sets found.chunk and found.before from the number of entries with found.key in each chunk.
template <class Count>
void locate(Found& found, int64_t chunk_count, Count&& count) {
  int64_t before = 0;
  for (int64_t c = 0; c < chunk_count; ++c) {
    const int64_t here = count(c);
    if (before + here >= found.ties) {
      found.chunk = c;
      found.before = before;
      return;
    }
    before += here;
  }
  throw std::invalid_argument("a weight was changed while the kernel ran");
}

// All magnitudes at once: for small vectors.
Threshold direct(const Vectors& v, float alpha, int64_t keep) {
  std::vector<Key> keys(v.n);
  if (!loops(v.dtype).keys(keys.data(), source(v, alpha), 0, v.n)) throw_not_finite(v, alpha);
  std::vector<Key> order(keys);
  const Found found = select(order.data(), order.data() + v.n, keep);
  int64_t left = found.ties;
  int64_t last = 0;
  for (; last < v.n; ++last)
    if (keys[last] == found.key && --left == 0) break;
  return {value_of(found.key, v.dtype), last};
}

// Counts, for every chunk and every bin of `shift` bits, the keys whose higher bits are `prefix`.
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

// The bin that holds the entry of this rank, and the rank within the bin.
std::pair<Key, int64_t> bin_of(const std::vector<int64_t>& counts, int64_t rank) {
  Key bin = Key(counts.size()) - 1;
  for (; rank > counts[bin]; --bin) rank -= counts[bin];
  return {bin, rank};
}

// Two passes that need no luck: a histogram of the keys' high bits, then one of the low bits in the bin found.
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
    const int64_t expected = int64_t(kSigmas * double(v_.n) / std::sqrt(double(sample_size(v_.n))) / threads_);
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

}  // namespace

void set_selection(const std::string& name) {
  if (name == "auto")
    selection = Selection::kAuto;
  else if (name == "bracket")
    selection = Selection::kBracket;
  else if (name == "histogram")
    selection = Selection::kHistogram;
  else
    throw std::invalid_argument("selection is auto, bracket or histogram, not \"" + name + "\"");
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

std::vector<Threshold> interpolate_threshold(const Vectors& v, const std::vector<float>& alphas, int64_t keep) {
  DefaultFloatingPoint environment;
  if (keep == 0) {
    for (float alpha : alphas) {  // nothing to select, but bad values are an error here too
      histogram(v, alpha, 1, 0, 0, 31);
    }
    return std::vector<Threshold>(alphas.size(), {std::numeric_limits<float>::infinity(), -1});
  }
  if (alphas.empty()) return {};
  const Selection how = selection;
  if (how == Selection::kBracket || (how == Selection::kAuto && v.n > kDirect)) return by_bracket(v, alphas, keep);
  std::vector<Threshold> thresholds;
  for (float alpha : alphas)
    thresholds.push_back(how == Selection::kHistogram ? by_histogram(v, alpha, keep) : direct(v, alpha, keep));
  return thresholds;
}

}  // namespace lpk::cpu
