// A search for thresholds as the operations that use them ask for it.
#pragma once

#include "operations.h"

namespace lpk::cuda {

// What the search does with the thresholds that it has found, before it ends: a short vector's second launch would cost more
// than its cutting.
enum Ending : int { kNothing, kPrune, kMask };

struct Cut {
  Ending ending;
  void* out;  // kPrune: [count][n]; kMask: bool [n]
};

#ifdef LPK_EMULATED
constexpr int64_t kCutAtOnce = 4096;
#else
constexpr int64_t kCutAtOnce = 1 << 22;  // entries; longer vectors are cut by a kernel of their own, which does nothing else
#endif

struct Thresholds {
  const float* values;
  const int64_t* last;
};

// For kMostCoefficients at most; the thresholds stay in the workspace.
Thresholds find_thresholds(const Vectors& vectors, const Coefficients& alphas, int count, int64_t keep, void* workspace,
                           Cut cut);

}  // namespace lpk::cuda
