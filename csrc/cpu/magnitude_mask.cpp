// Which entries are among the `keep` largest magnitudes, given their threshold.
#include "pieces.h"

namespace lpk::cpu {

void magnitude_mask(uint8_t* out, const Vectors& v, const Threshold& threshold) {
  for_pieces(v, 1.0f, threshold, [&](int64_t offset, int64_t count, Key key) {
    return loops(v.dtype).mask(out, source(v, 1.0f), offset, count, key);
  });
}

}  // namespace lpk::cpu
