// The inner loops of every CPU operation, as one table of function pointers for each instruction set and dtype.
// They are single-threaded, allocate nothing and know nothing of PyTorch; the operations beside this file thread them.
#pragma once

#include <cstdint>

namespace lpk {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kDtypes = 3 };

// A magnitude is handled as its key: the bits of |x| as stored, an integer that orders like |x|. Keys are below 2^31,
// so -1 lies under all of them.
using Key = int32_t;

// Where the elements come from: x_j = fma(alpha, a_j, beta * b_j), or x_j = a_j where b is null.
struct Source {
  const void* a;
  const void* b;
  float alpha;
  float beta;
};

// The interval of keys in which the sweep looks for the threshold of one coefficient.
struct Bracket {
  float alpha;
  float beta;
  Key lo;
  Key hi;
  bool tied;  // whether lo or hi are probably the magnitude of many elements, which must then be counted
};

// What the sweep counts for one coefficient in one chunk; a chunk has fewer than 2^31 elements.
struct Tally {
  int32_t above_hi;     // key >  hi
  int32_t from_hi;      // key >= hi
  int32_t above_lo;     // key >  lo
  int32_t from_lo;      // key >= lo; not tied: as above_lo, and above_hi as from_hi
  int32_t not_finite;   // 1 if some element of a or b is NaN or infinite
};

// A piece of vectors that are packed: the elements `begin` to `end` of the source, which stand, in order, where the bits
// of the support are set (bit i % 8 of byte i / 8 for element i of the full vectors). Before packed position `split` they
// are pruned as with threshold - 1.
struct Packed {
  Source source;
  const uint8_t* support;
  int64_t begin;
  int64_t end;
  int64_t split;
  Key threshold;
};

struct Loops {
  // keys[i] = key of x_i. Returns false if some x is not finite (keys are then meaningless).
  bool (*keys)(Key* keys, const Source& source, int64_t offset, int64_t n);

  // Counts, for each of the `count` brackets, the n elements from `offset`, and appends the keys strictly inside bracket
  // k, in order, to stored[k] (advanced; null: not stored; room for n + 16 keys).
  void (*sweep)(const void* a, const void* b, int64_t offset, int64_t n, const Bracket* brackets, int count,
                Tally* tallies, Key** stored);

  // out[i] = key of x_i > threshold ? x_i : +0. `stream` writes past the cache. Returns false if some x is not finite.
  bool (*prune)(void* out, const Source& source, int64_t offset, int64_t n, Key threshold, bool stream);

  // out[i] = key of x_i > threshold.
  bool (*mask)(uint8_t* out, const Source& source, int64_t offset, int64_t n, Key threshold);

  // The support of n elements from `offset`, a multiple of 8: where a or b has a bit set, as bits. Returns how many are
  // in it, or -1 if some a or b is not finite.
  int64_t (*support)(uint8_t* support, const void* a, const void* b, int64_t offset, int64_t n);

  // Writes those of n elements from `offset`, a multiple of 8, that are in the support side by side, and nothing else.
  void (*pack)(void* out, const void* x, const uint8_t* support, int64_t offset, int64_t n);

  // Prunes packed elements, and writes n elements of the full vector from `offset`, a multiple of 8: +0 outside of the
  // support. Returns how many packed elements that took (more than there are: it stopped), or -1 if some x is not finite.
  int64_t (*unpack)(void* out, const Packed& packed, int64_t offset, int64_t n, bool stream);
};

extern const Loops loops_portable[kDtypes];
#ifdef LPK_X86
extern const Loops loops_avx2[kDtypes];
extern const Loops loops_avx512[kDtypes];
#endif

}  // namespace lpk
