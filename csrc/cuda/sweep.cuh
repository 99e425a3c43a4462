// One sweep over a and b for all coefficients: how many entries lie above each bracket and at its ends, and which lie inside.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kStage = 128;  // entries of one coefficient that a block holds back before it writes them
constexpr int kWarps = kThreads / 32;
constexpr int kQueue = 256;  // marked entries that a warp looks at together; where it has more, each thread looks at its own

// Coefficients whose counts and marks share a word: a byte each, one bit of it for each of a thread's entries.
constexpr int kTogether = 4;
constexpr int kWords = kMostCoefficients / kTogether;
constexpr int kTilesCounted = 255 / kPerThread;  // that a byte can count the entries of
static_assert(kPerThread <= 8);

// x = b + alpha * (a - b), roughly: by at most 2^-21 of the larger of |a| and |b|. Where that is at most kFar times a magnitude,
// it is off by less than kNear of it.
constexpr float kFar = 64.0f, kNear = 1.0f / (1 << 14);
constexpr float kLeast = 0x1p-100f, kMost = 0x1p100f;  // below the one rounding is coarser, above the other there is no room

template <class D>
constexpr bool kRough = D::kKeyBits == 31;  // entries of 16 bits are rounded more coarsely than that

// What a block knows of one coefficient while it sweeps.
struct Swept {
  float alpha;
  float hi, lowest;  // above one entries are counted, below the other they are left; roughly, if the sweep is rough
  float lo;          // the magnitudes of the bracket's ends: -1 and NaN, which nothing is above, where it has none
  float own_hi, own_lowest;
  unsigned above_hi, at_hi, at_lo;
  unsigned staged;  // entries inside, even those that the stage had no room for
  unsigned long long base;
};

template <class D>
__device__ Swept begin(const State& s, float alpha) {
  Swept swept{alpha, D::value(s.hi), 0.0f, s.lo < 0 ? -1.0f : D::value(s.lo)};
  // Where zeros are at an end of the bracket they are most of the vector: as many as are left, uncounted.
  swept.lowest = s.lo == 0 ? D::value(1) : swept.lo;
  swept.own_hi = swept.hi;
  swept.own_lowest = swept.lowest;
  return swept;
}

__device__ inline void store(const Workspace& w, int k, unsigned long long at, Word word) {
  if (at < (unsigned long long)w.room) w.stored[k * w.room + int64_t(at)] = word;
}

// Writes what the block holds back, and empties the stage.
__device__ inline void flush(const Workspace& w, int count, Swept* swept, const Word (*stage)[kStage]) {
  const auto held = [&](int k) { return swept[k].staged < kStage ? swept[k].staged : unsigned(kStage); };
  if (threadIdx.x < count) {
    const int k = threadIdx.x;
    if (held(k)) swept[k].base = atomicAdd(&w.states[k].stored, (unsigned long long)held(k));
  }
  __syncthreads();
  for (int j = threadIdx.x; j < count * kStage; j += kThreads) {
    const int k = j / kStage;
    const unsigned slot = j % kStage;
    if (slot < held(k)) store(w, k, swept[k].base + slot, stage[k][slot]);
  }
  __syncthreads();
  if (threadIdx.x < count) swept[threadIdx.x].staged = 0;
  __syncthreads();
}

// Bit e: whether the thread's e-th entry of a tile of this size exists.
__device__ inline unsigned existing(int size) { return (1u << ((size + kThreads - 1 - int(threadIdx.x)) / kThreads)) - 1; }

// The same bits in every byte; and the lowest bytes of a word.
__device__ inline unsigned in_all(unsigned bits) { return bits * 0x01010101u; }
__device__ inline unsigned bytes(int count) { return count >= kTogether ? ~0u : (1u << (8 * count)) - 1; }

// Which entries of a thread's tile are above the brackets, counted, and which are not below them, marked, for all
// coefficients. x(a, b, alpha): an entry.
template <class Number, class X>
__device__ void compare(const Swept* swept, int count, const Number (&a)[kPerThread], const Number (&b)[kPerThread], X x,
                        unsigned (&counts)[kWords], unsigned (&marks)[kWords]) {
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    marks[word] = 0;
    if (word * kTogether >= count) continue;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (word * kTogether + j >= count) break;
      const Swept& s = swept[word * kTogether + j];
      const float alpha = s.alpha, hi = s.hi, lowest = s.lowest;
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        const float magnitude = fabsf(x(a[e], b[e], alpha));
        const bool above = magnitude > hi;
        if (above) counts[word] += 1u << (8 * j);
        if (!above && magnitude >= lowest) marks[word] |= 1u << (8 * j + e);
      }
    }
  }
}

// What a marked entry is; true if the block's stage is filling.
template <class D>
__device__ bool look(const Vectors& v, const Workspace& w, Swept* swept, Word (*stage)[kStage], int k, int64_t i) {
  Swept& s = swept[k];
  const auto x = element<D>(v, s.alpha, i);
  const float magnitude = fabsf(D::widen(x));
  if (magnitude > s.own_hi) {
    atomicAdd(&s.above_hi, 1u);
  } else if (magnitude == s.own_hi) {
    atomicAdd(&s.at_hi, 1u);
  } else if (magnitude == s.lo) {
    atomicAdd(&s.at_lo, 1u);
  } else if (magnitude >= s.own_lowest) {
    const Word word = word_of(D::key(x), i);
    const unsigned slot = atomicAdd(&s.staged, 1u);
    if (slot < kStage) {
      stage[k][slot] = word;
    } else {
      store(w, k, atomicAdd(&w.states[k].stored, 1ull), word);
    }
    return slot >= kStage / 2;
  }
  return false;
}

// The marked entries of a warp's tile: shared out among its threads, as few of them have one.
template <class D>
__device__ bool look_at_marked(const Vectors& v, const Workspace& w, Swept* swept, Word (*stage)[kStage],
                               unsigned short* queue, int64_t begin, const unsigned (&marks)[kWords]) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  // A mark's place: its bit, of all words, and above that the lane.
  const auto look_at = [&](unsigned place) {
    const int e = place % 8, k = place / 8 % kMostCoefficients, thread = first + int(place / (8 * kMostCoefficients));
    return look<D>(v, w, swept, stage, k, begin + e * kThreads + thread);
  };
  const auto for_each_own = [&](auto body) {
#pragma unroll
    for (int word = 0; word < kWords; ++word)
      for (unsigned left = marks[word]; left; left &= left - 1)
        body(unsigned(lane * 8 * kMostCoefficients + word * 32 + __ffs(int(left)) - 1));
  };
  unsigned own = 0;
#pragma unroll
  for (int word = 0; word < kWords; ++word) own += __popc(marks[word]);
  const unsigned total = __reduce_add_sync(0xffffffffu, own);
  if (total == 0) return false;
  bool crowded = false;
  if (total > unsigned(kQueue)) {
    for_each_own([&](unsigned place) { crowded = look_at(place) || crowded; });
    return crowded;
  }
  unsigned at = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const auto before = unsigned(__shfl_up_sync(0xffffffffu, at, distance));
    if (lane >= distance) at += before;
  }
  at -= own;
  for_each_own([&](unsigned place) { queue[at++] = static_cast<unsigned short>(place); });
  __syncwarp();
  for (unsigned i = lane; i < total; i += 32) crowded = look_at(queue[i]) || crowded;
  __syncwarp();
  return crowded;
}

// Adds a thread's counts to those of the block.
__device__ inline void add_counts(Swept* swept, int count, unsigned (&counts)[kWords]) {
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int k = word * kTogether + j;
      if (k >= count) break;
      const unsigned all = __reduce_add_sync(0xffffffffu, counts[word] >> (8 * j) & 255);
      if (threadIdx.x % 32 == 0 && all) atomicAdd(&swept[k].above_hi, all);
    }
    counts[word] = 0;
  }
}

// What a block has at hand for the sweep.
struct SweepMemory {
  Word stage[kMostCoefficients][kStage];
  Swept swept[kMostCoefficients];
  unsigned short queues[kWarps][kQueue];
  float far;  // entries of which a or b is larger are not known roughly; 0: none is to be known so
};

template <class D>
__device__ void begin_sweep(const Search& s, SweepMemory& memory) {
  if (threadIdx.x < s.count) memory.swept[threadIdx.x] = begin<D>(s.w.states[threadIdx.x], s.alpha(threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) {
    float least = kRough<D> ? INFINITY : 0.0f;
    for (int k = 0; k < s.count; ++k) least = fminf(least, memory.swept[k].lo);
    memory.far = least >= kLeast && least <= kMost ? kFar * least : 0.0f;
  }
  __syncthreads();
  if (memory.far > 0.0f && threadIdx.x < s.count) {
    memory.swept[threadIdx.x].hi *= 1.0f + kNear;
    memory.swept[threadIdx.x].lowest *= 1.0f - kNear;
  }
  __syncthreads();
}

// Reports what is not finite, and returns the largest of |a| and |b|; NaN is larger than nothing.
template <class D>
__device__ float look_over(const Vectors& v, const Tile<D>& tile) {
  float largest = 0.0f;
  bool all_finite = true;
  const auto both_finite = [&](int e) { return finite(D::widen(tile.a[e])) && finite(D::widen(tile.b[e])); };
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    all_finite = all_finite && both_finite(e);
    largest = fmaxf(largest, fmaxf(fabsf(D::widen(tile.a[e])), fabsf(D::widen(tile.b[e]))));
  }
  if (!all_finite) {
#pragma unroll
    for (int e = 0; e < kPerThread; ++e)
      if (!both_finite(e)) report(v, tile.index(e));
  }
  return largest;
}

// compare(), roughly; entries that are too large for that are marked for all coefficients. The tile holds something else
// afterwards.
template <class D>
__device__ void compare_roughly(const SweepMemory& memory, int count, Tile<D>& tile, float largest,
                                unsigned (&counts)[kWords], unsigned (&marks)[kWords]) {
  unsigned far_away = 0;
  if (largest > memory.far) {
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      if (fmaxf(fabsf(tile.a[e]), fabsf(tile.b[e])) <= memory.far) continue;
      far_away |= 1u << e;
      tile.a[e] = tile.b[e] = 0.0f;
    }
  }
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) tile.a[e] -= tile.b[e];
  compare(memory.swept, count, tile.a, tile.b,
          [](float step, float b, float alpha) { return __fmaf_rn(alpha, step, b); }, counts, marks);
#pragma unroll
  for (int word = 0; word < kWords; ++word)
    if (word * kTogether < count) marks[word] |= in_all(far_away) & bytes(count - word * kTogether);
}

template <class D>
__device__ void sweep(const Search& s, SweepMemory& memory) {
  Swept* swept = memory.swept;
  begin_sweep<D>(s, memory);
  const bool roughly = memory.far > 0.0f;
  unsigned counts[kWords] = {}, marks[kWords];
  int uncounted = 0;
  for (int64_t begin = int64_t(blockIdx.x) * kTile; begin < s.v.n; begin += int64_t(gridDim.x) * kTile) {
    Tile<D> tile(s.v, begin);
    const float largest = look_over(s.v, tile);
    if constexpr (kRough<D>) {
      if (roughly) compare_roughly(memory, s.count, tile, largest, counts, marks);
    }
    if (!kRough<D> || !roughly)
      compare(swept, s.count, tile.a, tile.b,
              [](auto a, auto b, float alpha) { return D::widen(interpolated<D>(a, b, alpha)); }, counts, marks);
    const unsigned exist = in_all(existing(tile.size));
#pragma unroll
    for (int word = 0; word < kWords; ++word) marks[word] &= exist;
    const bool crowded =
        look_at_marked<D>(s.v, s.w, swept, memory.stage, memory.queues[threadIdx.x / 32], begin, marks);
    if (++uncounted == kTilesCounted) {
      add_counts(swept, s.count, counts);
      uncounted = 0;
    }
    if (__syncthreads_or(crowded)) flush(s.w, s.count, swept, memory.stage);
  }
  add_counts(swept, s.count, counts);
  __syncthreads();
  flush(s.w, s.count, swept, memory.stage);
  if (threadIdx.x < s.count) {
    State& state = s.w.states[threadIdx.x];
    const Swept& own = swept[threadIdx.x];
    atomicAdd(&state.above_hi, (unsigned long long)own.above_hi);
    atomicAdd(&state.at_hi, (unsigned long long)own.at_hi);
    atomicAdd(&state.at_lo, (unsigned long long)own.at_lo);
  }
}

}  // namespace lpk::cuda
