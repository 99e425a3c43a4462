// What the sweep's counts tell of each threshold.
#pragma once

#include "workspace.cuh"

namespace lpk::cuda {

enum Status : int {
  kUnknown = 0,    // neither a histogram nor the bracket tells where the threshold is
  kInBracket = 1,  // it is among the stored entries
  kTied = 2,       // its key is known, the index of the last survivor is not
};

struct Verdict {
  Status status;
  int64_t rank;  // the threshold's among the entries that it is sought in, from 1
  Key prefix;    // the bits of its key that are known: kUnknown, key >> shift; kTied, all of them
  int shift;     // kInBracket: a stored word's bin is its distance from the first word >> shift
};

__device__ inline Verdict verdict_of(const State& s, int64_t n, int64_t room, int64_t keep, int key_bits) {
  const int64_t from_hi = s.hi == 0 ? n : int64_t(s.above_hi + s.at_hi);
  const int64_t above_lo = from_hi + int64_t(s.stored);
  const int64_t from_lo = s.lo == 0 ? n : above_lo + int64_t(s.at_lo);
  const Verdict unknown{kUnknown, keep, 0, key_bits};
  if (keep <= int64_t(s.above_hi) || keep > from_lo) return unknown;
  if (keep <= from_hi) return {kTied, keep - int64_t(s.above_hi), s.hi, 0};
  if (keep > above_lo) return {kTied, keep - above_lo, s.lo, 0};
  if (int64_t(s.stored) > room) return unknown;
  return {kInBracket, keep - from_hi, 0, s.shift()};
}

// The verdicts of all coefficients, in every block alike, and those coefficients that are not yet done with when the stored
// entries are.
struct Verdicts {
  Verdict of[kMostCoefficients];
  int pending[kMostCoefficients];
  int pending_count;
  bool any_unknown;
};

template <class D>
__device__ void judge(const Search& s, Verdicts& verdicts) {
  if (threadIdx.x < s.count)
    verdicts.of[threadIdx.x] = verdict_of(s.w.states[threadIdx.x], s.v.n, s.w.room, s.keep, D::kKeyBits);
  __syncthreads();
  if (threadIdx.x == 0) {
    verdicts.pending_count = 0;
    verdicts.any_unknown = false;
    for (int k = 0; k < s.count; ++k) {
      verdicts.any_unknown = verdicts.any_unknown || verdicts.of[k].status == kUnknown;
      if (verdicts.of[k].status != kInBracket) verdicts.pending[verdicts.pending_count++] = k;
    }
  }
  __syncthreads();
}

}  // namespace lpk::cuda
