// Pairs of sparse vectors without what is +0 in both. Their interpolation is +0 there too, so that it need not be computed.
#include <stdexcept>

#include "pieces.h"

namespace lpk::cpu {
namespace {

int64_t element_size(Dtype dtype) { return dtype == kFloat32 ? 4 : 2; }

// Calls body(chunk, offset, count) for each chunk of 0..n, on several threads.
template <class Body>
void for_chunks(int64_t n, int threads, Body&& body) {
  parallel_for(chunks(n), threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      body(chunk, chunk * kChunk, std::min(kChunk, n - chunk * kChunk));
  });
}

// Prunes packed vectors into `out`, which has support.n elements. Returns false if some x is not finite.
bool unpack(void* out, const Vectors& packed, const Source& source, const Support& support, const Cut& cut) {
  const bool stream = support.n * element_size(packed.dtype) > kStreamBytes;
  const auto unfit = [] { throw std::invalid_argument("packed does not hold together; pass what pack returned"); };
  if (support.positions[0] != 0 || support.positions[chunks(support.n)] != packed.n) unfit();
  std::atomic<bool> finite{true};
  for_chunks(support.n, packed.threads, [&](int64_t chunk, int64_t offset, int64_t count) {
    const int64_t begin = support.positions[chunk], end = support.positions[chunk + 1];
    if (begin < 0 || begin > end || end > packed.n) unfit();
    const int64_t taken = loops(packed.dtype)
                              .unpack(out, {source, support.bits, begin, end, cut.split, cut.key}, offset, count, stream);
    if (taken < 0)
      finite = false;
    else if (taken != end - begin)
      unfit();
  });
  return finite;
}

// The error names a position in the full vectors, so these are made once more.
[[noreturn]] void throw_not_finite_packed(const Vectors& packed, const Support& support, float alpha) {
  const Cut all{-1, 0};
  std::vector<char> a(support.n * element_size(packed.dtype)), b(a);
  unpack(a.data(), packed, {packed.a, nullptr, 1.0f, 0.0f}, support, all);
  unpack(b.data(), packed, {packed.b, nullptr, 1.0f, 0.0f}, support, all);
  throw_not_finite({a.data(), b.data(), support.n, packed.dtype, packed.threads}, alpha);
}

}  // namespace

int64_t find_support(const Support& support, const Vectors& v) {
  std::atomic<bool> finite{true};
  support.positions[0] = 0;
  for_chunks(v.n, v.threads, [&](int64_t chunk, int64_t offset, int64_t count) {
    const int64_t size = loops(v.dtype).support(support.bits, v.a, v.b, offset, count);
    support.positions[chunk + 1] = size;
    if (size < 0) finite = false;
  });
  if (!finite) throw_not_finite(v, 1.0f);
  for (int64_t chunk = 0; chunk < chunks(v.n); ++chunk) support.positions[chunk + 1] += support.positions[chunk];
  return support.positions[chunks(v.n)];
}

void pack(void* out, const Vectors& x, const Support& support) {
  for_chunks(x.n, x.threads, [&](int64_t chunk, int64_t offset, int64_t count) {
    const int64_t begin = support.positions[chunk];
    if (support.positions[chunk + 1] == begin) return;  // `out` may be null where the whole support is empty
    char* to = static_cast<char*>(out) + begin * element_size(x.dtype);
    loops(x.dtype).pack(to, x.a, support.bits, offset, count);
  });
}

void interpolate_prune_packed(void* out, const Vectors& packed, const Support& support, float alpha,
                              const Threshold& threshold) {
  if (!unpack(out, packed, source(packed, alpha), support, cut(threshold, packed.dtype)))
    throw_not_finite_packed(packed, support, alpha);
}

}  // namespace lpk::cpu
