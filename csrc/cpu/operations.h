// The CPU operations: flat vectors in, flat vectors out. Every function checks for NaN and infinity and throws
// std::invalid_argument that says where; sizes, dtypes and overlap were checked by the caller (lpk/ops).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "loops.h"

namespace lpk::cpu {

// Work is handed to threads, and counted, in chunks of this many elements.
constexpr int64_t kChunk = 32768;

// |x| > value survives, and |x| = value up to position `last`: exactly `keep` entries do. keep = 0: (+inf, -1).
struct Threshold {
  float value;
  int64_t last;
};

struct Vectors {
  const void* a;
  const void* b;  // null: x = a
  int64_t n;
  Dtype dtype;
  int threads;
};

// Which elements of two vectors are in neither's zeros: where a or b has a bit set (so -0 is in it).
struct Support {
  uint8_t* bits;       // bit i % 8 of byte i / 8 for element i; the last byte is filled up with zeros
  int64_t* positions;  // how many elements of the support stand before each chunk, and at last how many there are
  int64_t n;
};

void interpolate(void* out, const Vectors& vectors, float alpha);
std::vector<Threshold> interpolate_threshold(const Vectors& vectors, const std::vector<float>& alphas, int64_t keep);
void interpolate_prune(void* out, const Vectors& vectors, float alpha, const Threshold& threshold);
// Row after row, one for each coefficient; `out` is apart from the vectors.
void interpolate_prune_all(void* out, const Vectors& vectors, const std::vector<float>& alphas,
                           const std::vector<Threshold>& thresholds);
void magnitude_mask(uint8_t* out, const Vectors& vectors, const Threshold& threshold);

// Fills in `support`; returns its size. Then pack(): the elements of one vector, x = a, that are in it, side by side.
int64_t find_support(const Support& support, const Vectors& vectors);
void pack(void* out, const Vectors& vector, const Support& support);
// interpolate_prune of packed vectors, unpacked; threshold.last is a position in the packed vectors.
void interpolate_prune_packed(void* out, const Vectors& packed, const Support& support, float alpha,
                              const Threshold& threshold);

// The instruction set in use: the best one of this processor or the one that LPK_CPU names, unless a test sets another
// ("auto": back to that).
std::vector<std::string> instruction_sets();
std::string instruction_set();
void set_instruction_set(const std::string& name);
const Loops& loops(Dtype dtype);

// How thresholds are selected: "auto" (direct for small vectors, else a bracket, else the histogram), or one forced.
void set_selection(const std::string& name);
// The positions whose magnitudes choose the bracket: one in each stratum, at a fixed pseudo-random place in it.
std::vector<int64_t> sample_positions(int64_t n);

// Throws std::invalid_argument naming the first element that is NaN or infinite (or whose interpolation overflows).
[[noreturn]] void throw_not_finite(const Vectors& vectors, float alpha);

// The dtype's value for a key, and the largest key whose value is at most `value`.
float value_of(Key key, Dtype dtype);
Key key_floor(float value, Dtype dtype);

inline int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }
inline Source source(const Vectors& v, float alpha) { return {v.a, v.b, alpha, 1.0f - alpha}; }

}  // namespace lpk::cpu
