// Keys and values of the three dtypes, and the search for an element that is not finite.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace lpk::cpu {
namespace {

constexpr Key kInfinity[kDtypes] = {0x7f800000, 0x7c00, 0x7f80};

float element(const void* p, int64_t i, Dtype dtype) {
  if (dtype == kFloat32) return static_cast<const float*>(p)[i];
  const uint16_t bits = static_cast<const uint16_t*>(p)[i];
  const float magnitude = value_of(bits & 0x7fff, dtype);
  return bits & 0x8000 ? -magnitude : magnitude;
}

int64_t first_not_finite(const void* p, int64_t n, Dtype dtype) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(element(p, i, dtype))) return i;
  return -1;
}

std::string name(float value) { return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"; }

}  // namespace

float value_of(Key key, Dtype dtype) {
  if (dtype == kFloat16) {
    const int exponent = key >> 10, fraction = key & 0x3ff;
    if (exponent == 31) return fraction ? NAN : INFINITY;
    return exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(fraction | 0x400), exponent - 25);
  }
  const uint32_t bits = dtype == kBfloat16 ? uint32_t(key) << 16 : uint32_t(key);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

Key key_floor(float value, Dtype dtype) {
  Key below = 0, above = kInfinity[dtype] + 1;
  while (above - below > 1) {
    const Key middle = below + (above - below) / 2;
    (value_of(middle, dtype) <= value ? below : above) = middle;
  }
  return below;
}

void throw_not_finite(const Vectors& v, float alpha) {
  const char* names[2] = {v.b ? "a" : "x", "b"};
  const void* pointers[2] = {v.a, v.b};
  for (int k = 0; k < (v.b ? 2 : 1); ++k) {
    const int64_t at = first_not_finite(pointers[k], v.n, v.dtype);
    if (at >= 0)
      throw std::invalid_argument(std::string(names[k]) + "[" + std::to_string(at) + "] is " +
                                  name(element(pointers[k], at, v.dtype)) + "; every weight must be finite");
  }
  std::vector<Key> keys(kChunk);
  for (int64_t offset = 0; offset < v.n; offset += kChunk) {
    const int64_t count = std::min(kChunk, v.n - offset);
    if (loops(v.dtype).keys(keys.data(), source(v, alpha), offset, count)) continue;
    for (int64_t i = 0; i < count; ++i)
      if (keys[i] >= kInfinity[v.dtype])
        throw std::invalid_argument("the interpolation of a and b overflows at [" + std::to_string(offset + i) + "]");
  }
  // Only another thread writing to the vectors can bring us here.
  throw std::invalid_argument("a weight was not finite, and was changed while the kernel ran");
}

}  // namespace lpk::cpu
