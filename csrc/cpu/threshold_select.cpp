// Selection among keys in memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "bracket.h"
#include "threshold.h"

namespace lpk::cpu {
namespace {

constexpr int64_t kFew = 4096;         // so many keys, or fewer, are selected from without a sample
constexpr int64_t kFewSampled = 1024;

}  // namespace

Bracket enclosing(std::vector<Key>& sample, double share) {
  const auto size = int64_t(sample.size());
  const double width = kBracketSigmas * std::sqrt(double(size) * share * (1.0 - share)) + 2.0;
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

// Where they are many, a sample of them gives a bracket, too, which leaves few to select from.
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

int64_t position(const Vectors& v, float alpha, const Found& found) {
  std::vector<Key> keys(kChunk);
  const int64_t offset = found.chunk * kChunk, count = std::min(kChunk, v.n - offset);
  loops(v.dtype).keys(keys.data(), source(v, alpha), offset, count);
  int64_t left = found.ties - found.before;
  for (int64_t i = 0; i < count; ++i)
    if (keys[i] == found.key && --left == 0) return offset + i;
  throw std::invalid_argument("a weight was changed while the kernel ran");
}

}  // namespace lpk::cpu
