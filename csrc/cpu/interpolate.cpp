// x = fma(alpha, a, beta * b), element by element.
#include "operations.h"

namespace lpk::cpu {

// A threshold under every magnitude: everything survives.
void interpolate(void* out, const Vectors& vectors, float alpha) {
  interpolate_prune(out, vectors, alpha, Threshold{0.0f, vectors.n - 1});
}

}  // namespace lpk::cpu
