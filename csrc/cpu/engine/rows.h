// The pixels of a channel as contiguous pieces: all of them, where no activations of an operation have a border, else
// its rows.
#pragma once

#include "engine.h"

namespace lpk::engine {

struct Rows {
  int64_t count, pixels;
};

inline Rows rows_of(const Activations& a, const Activations& b, const Activations* c = nullptr) {
  if (a.border == 0 && b.border == 0 && (c == nullptr || c->border == 0)) return {1, a.height * a.width};
  return {a.height, a.width};
}

}  // namespace lpk::engine
