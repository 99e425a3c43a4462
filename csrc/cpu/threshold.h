// The parts of the search for thresholds: selection among keys, by a bracket in one sweep, and by histograms.
#pragma once

#include <stdexcept>

#include "operations.h"

namespace lpk::cpu {

// Where the threshold lies: its key, and which of the entries with that key, counted from 1 in index order, survives
// last.
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

// The entry of this rank, counted from 1, the largest first: among a few keys, which are put into another order, and
// among the keys of all pieces.
Found select(Key* begin, Key* end, int64_t rank);
Found key_of_rank(const std::vector<Piece>& pieces, int64_t rank);

// The keys whose ranks in a sample enclose a share of them; the ends of the key range where there is no such key.
Bracket enclosing(std::vector<Key>& sample, double share);

// The position of the entry that `found` describes: its chunk is scanned again.
int64_t position(const Vectors& v, float alpha, const Found& found);

// How many keys fall into each bin of their bits from `shift` on, of those whose bits from `prefix_shift` on are
// `prefix`.
std::vector<int64_t> histogram(const Vectors& v, float alpha, int bins, int shift, Key prefix, int prefix_shift);
// By two such passes, whatever the data are.
Threshold by_histogram(const Vectors& v, float alpha, int64_t keep);

// For all coefficients in one sweep; by histograms where a bracket missed.
std::vector<Threshold> by_bracket(const Vectors& v, const std::vector<float>& alphas, int64_t keep);

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

}  // namespace lpk::cpu
