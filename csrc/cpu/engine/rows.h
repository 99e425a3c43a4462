// The pixels of a channel as contiguous pieces: all of them, where its rows follow each other, else its rows.
#pragma once

#include "engine.h"

namespace lpk::engine {

struct Rows {
  int64_t count, pixels;
};

// What is stored and then has its activation applied: the processor does the one while it waits for the other.
constexpr int64_t kPiece = 32 * kImages;

// Whether nothing lies between the rows of a channel.
inline bool rows_follow(const Activations& x) { return x.height == 1 || x.row_stride == x.width * kImages; }

inline Rows rows_of(const Activations& a, const Activations& b, const Activations* c = nullptr) {
  if (rows_follow(a) && rows_follow(b) && (c == nullptr || rows_follow(*c))) return {1, a.height * a.width};
  return {a.height, a.width};
}

}  // namespace lpk::engine
