// The interpolation with all but its `keep` largest magnitudes set to +0, in one pass, given their threshold. With one
// vector only (b null) this is magnitude pruning.
#include "pieces.h"

namespace lpk::cpu {
namespace {

// Outputs larger than this are written past the cache: they would only push out what the caller still needs.
constexpr int64_t kStreamBytes = int64_t(4) << 20;

}  // namespace

void interpolate_prune(void* out, const Vectors& v, float alpha, const Threshold& threshold) {
  const int64_t bytes = v.n * (v.dtype == kFloat32 ? 4 : 2);
  const bool stream = bytes > kStreamBytes && out != v.a && out != v.b;
  for_pieces(v, alpha, threshold, [&](int64_t offset, int64_t count, Key key) {
    return loops(v.dtype).prune(out, source(v, alpha), offset, count, key, stream);
  });
}

}  // namespace lpk::cpu
