// What a block knows of its coefficients while it sweeps, and a closer look at the few entries that may lie in their brackets.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kStage = 32;   // entries of one coefficient that a warp holds back before it writes them
constexpr int kQueue = 288;  // marked entries that wait until there are enough for a warp to look at together

// Coefficients whose counts and marks share a word: a byte each, one bit of it for each of a thread's entries.
constexpr int kTogether = 4;
constexpr int kWords = kMostCoefficients / kTogether;
constexpr int kTilesCounted = 16;  // that a byte can count the entries of, and a mark's place can tell apart
static_assert(kPerThread == 8 && kTilesCounted * kPerThread <= 255);

constexpr unsigned kAllLanes = 0xffffffffu;

// x = b + alpha * (a - b), roughly: by at most 2^-21 of the larger of |a| and |b|. Where that is at most kFar times a magnitude,
// it is off by less than kNear of it.
constexpr float kFar = 64.0f, kNear = 1.0f / (1 << 14);
constexpr float kLargest = 0x1.fffffep127f;
constexpr float kLeast = 0x1p-100f, kMost = 0x1p100f;  // below the one rounding is coarser, above the other there is no room

template <class D>
using SweptTile = Tile<D, kAtOnce>;

template <class D>
constexpr bool kRough = D::kKeyBits == 31;  // entries of 16 bits are rounded more coarsely than that

// What a block knows of one coefficient while it sweeps.
struct Swept {
  float alpha;
  float middle, half;  // roughly, entries less than half from the middle are marked, and those above the middle counted
  float hi, lowest;    // exactly, above one entries are counted, below the other they are left
  float lo;            // the magnitudes of the bracket's ends: -1 and NaN, which nothing is above, where it has none
  unsigned above_hi, at_hi, at_lo;
};

template <class D>
__device__ Swept begin(const State& s, float alpha) {
  Swept swept{alpha, 0.0f, 0.0f, D::value(s.hi), 0.0f, s.lo < 0 ? -1.0f : D::value(s.lo)};
  // Where zeros are at an end of the bracket they are most of the vector: as many as are left, uncounted.
  swept.lowest = s.lo == 0 ? D::value(1) : swept.lo;
  const float from = swept.lowest * (1.0f - kNear), to = swept.hi * (1.0f + kNear);
  swept.middle = 0.5f * (from + to);
  swept.half = 0.5f * (to - from) + to * 0x1p-20f;  // more than the middle and a distance from it are rounded by
  return swept;
}

// Stores an entry if there is room.
__device__ inline void store(const Workspace& w, int k, unsigned long long at, Word word) {
  if (at < (unsigned long long)w.room) w.stored[k * w.room + int64_t(at)] = word;
}

// What a block has at hand for the sweep.
struct SweepMemory {
  Word stage[kWarps][kMostCoefficients][kStage];
  unsigned staged[kWarps][kMostCoefficients];  // entries inside, even those that the stage had no room for
  Swept swept[kMostCoefficients];
  unsigned short queues[kWarps][kQueue];
  float far;  // entries of which a or b is larger are not known roughly; negative: none is
};

// Writes what a warp holds back, and empties its stage.
__device__ inline void flush(const Workspace& w, int count, SweepMemory& memory) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned held = 0;
  unsigned long long base = 0;
  __syncwarp();
  if (lane < count) {
    held = memory.staged[warp][lane] < kStage ? memory.staged[warp][lane] : unsigned(kStage);
    if (held) base = atomicAdd(&w.states[lane].stored, (unsigned long long)held);
    memory.staged[warp][lane] = 0;
  }
#pragma unroll 1
  for (int k = 0; k < count; ++k) {
    const unsigned own = __shfl_sync(kAllLanes, held, k);
    const auto at = __shfl_sync(kAllLanes, base, k) + lane;
    if (lane < int(own)) store(w, k, at, memory.stage[warp][k][lane]);
  }
  __syncwarp();
}

// Whether an entry is known roughly: not where a or b is large, infinite or NaN.
__device__ inline bool are_within(float a, float b, float far) { return fabsf(a) <= far && fabsf(b) <= far; }

// How far an entry is above the middle, roughly; negative below it.
__device__ inline float above_middle(const Swept& s, float step, float b) {
  return fabsf(__fmaf_rn(s.alpha, step, b)) - s.middle;
}

// What a marked entry is; true if the warp's stage is filling.
template <class D>
__device__ bool look(const Search& s, SweepMemory& memory, int k, int64_t i) {
  Swept& own = memory.swept[k];
  const auto a = static_cast<const typename D::Stored*>(s.v.a)[i];
  const auto b = s.v.b ? static_cast<const typename D::Stored*>(s.v.b)[i] : D::narrow(0.0f);
  const auto x = interpolated<D>(a, b, own.alpha);
  const float magnitude = fabsf(D::widen(x));
  const float wide_a = D::widen(a), wide_b = D::widen(b);
  const bool counted = are_within(wide_a, wide_b, memory.far) && above_middle(own, wide_a - wide_b, wide_b) >= 0.0f;
  const bool above = magnitude > own.hi;
  if (above != counted) atomicAdd(&own.above_hi, above ? 1u : ~0u);
  if (above) return false;
  if (magnitude == own.hi) {
    atomicAdd(&own.at_hi, 1u);
  } else if (magnitude == own.lo) {
    atomicAdd(&own.at_lo, 1u);
  } else if (magnitude >= own.lowest) {
    const Word word = word_of(D::key(x), i);
    const int warp = threadIdx.x / 32;
    const unsigned slot = atomicAdd(&memory.staged[warp][k], 1u);
    if (slot < kStage) {
      memory.stage[warp][k][slot] = word;
    } else {
      store(s.w, k, atomicAdd(&s.w.states[k].stored, 1ull), word);
    }
    return slot >= kStage / 2;
  }
  return false;
}

// The marked entries of a warp, looked at as soon as there is one for each of its threads: few threads of a tile have one.
// They lie in some tiles in a row, the first of which begins at `begin`.
struct Marked {
  int64_t begin;
  unsigned waiting = 0;

  static constexpr int kEntryBits = 3, kCoefficientBits = 4, kLaneBits = 5;
  static_assert(1 << kEntryBits == kPerThread && 1 << kCoefficientBits == kMostCoefficients);
  static_assert(kTilesCounted << (kEntryBits + kCoefficientBits + kLaneBits) <= 1 << 16);

  // place: its bit, of all words, above that the lane, and above that the tile.
  template <class D>
  __device__ bool look_at(const Search& s, SweepMemory& memory, unsigned place) const {
    const int first = threadIdx.x / 32 * 32;
    const int e = place % 8, k = place / 8 % kMostCoefficients;
    const int thread = first + int(place / (8 * kMostCoefficients) % 32), tile = int(place / (8 * kMostCoefficients * 32));
    return look<D>(s, memory, k, begin + tile * int64_t(gridDim.x) * kTile + e * kThreads + thread);
  }

  // Looks at some of those that wait, until fewer than `enough` do.
  template <class D>
  __device__ void look_at_waiting(const Search& s, SweepMemory& memory, unsigned enough) {
    const int lane = threadIdx.x % 32;
    const unsigned short* queue = memory.queues[threadIdx.x / 32];
    while (waiting >= enough) {
      const unsigned some = waiting < 32 ? waiting : 32;
      waiting -= some;
      const bool crowded = lane < int(some) && look_at<D>(s, memory, queue[waiting + lane]);
      if (__ballot_sync(kAllLanes, crowded)) flush(s.w, s.count, memory);
    }
    __syncwarp();
  }

  // Adds those of a tile.
  template <class D>
  __device__ void add(const Search& s, SweepMemory& memory, int tile, const unsigned (&marks)[kWords]) {
    const int lane = threadIdx.x % 32;
    unsigned short* queue = memory.queues[threadIdx.x / 32];
    const auto for_each_own = [&](auto body) {
#pragma unroll
      for (int word = 0; word < kWords; ++word)
        for (unsigned left = marks[word]; left; left &= left - 1)
          body(unsigned((tile * 32 + lane) * 8 * kMostCoefficients + word * 32 + __ffs(int(left)) - 1));
    };
    unsigned own = 0;
#pragma unroll
    for (int word = 0; word < kWords; ++word) own += __popc(marks[word]);
    const unsigned total = __reduce_add_sync(kAllLanes, own);
    if (total == 0) return;
    if (waiting + total > unsigned(kQueue)) {
      bool crowded = false;
      for_each_own([&](unsigned place) { crowded = look_at<D>(s, memory, place) || crowded; });
      if (__ballot_sync(kAllLanes, crowded)) flush(s.w, s.count, memory);
      return;
    }
    unsigned at = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const auto before = unsigned(__shfl_up_sync(kAllLanes, at, distance));
      if (lane >= distance) at += before;
    }
    at += waiting - own;
    for_each_own([&](unsigned place) { queue[at++] = static_cast<unsigned short>(place); });
    waiting += total;
    __syncwarp();
    look_at_waiting<D>(s, memory, 32);
  }
};

}  // namespace lpk::cuda
