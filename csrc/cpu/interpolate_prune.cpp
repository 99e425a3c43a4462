// The interpolation with all but its `keep` largest magnitudes set to +0, in one pass, given their threshold. With one
// vector only (b null) this is magnitude pruning.
#include "pieces.h"

namespace lpk::cpu {

void interpolate_prune(void* out, const Vectors& v, float alpha, const Threshold& threshold) {
  const int64_t bytes = v.n * (v.dtype == kFloat32 ? 4 : 2);
  const bool stream = bytes > kStreamBytes && out != v.a && out != v.b;
  for_pieces(v, alpha, threshold, [&](int64_t offset, int64_t count, Key key) {
    return loops(v.dtype).prune(out, source(v, alpha), offset, count, key, stream);
  });
}

}  // namespace lpk::cpu
