// The pixels of a channel as contiguous pieces: all of them, where no activations of an operation have a border, else
// its rows.
#pragma once

#include "engine.h"

namespace lpk::engine {

struct Rows {
  int64_t count, pixels;
};

// What is stored and then has its activation applied: the processor does the one while it waits for the other.
constexpr int64_t kPiece = 32 * kImages;

inline Rows rows_of(const Activations& a, const Activations& b, const Activations* c = nullptr) {
  if (a.border == 0 && b.border == 0 && (c == nullptr || c->border == 0)) return {1, a.height * a.width};
  return {a.height, a.width};
}

}  // namespace lpk::engine
