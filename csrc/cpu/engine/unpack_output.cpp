#include "strips.h"

namespace lpk::engine {

// The tensor's innermost numbers are channels or a row.
void unpack_output(float* out, const Activations& in, int64_t batch, const int64_t* strides, int threads) {
  const auto scatter = loops().scatter;
  for_each_strip(in, out, batch, strides, innermost(in, strides), threads,
                 [&](float* from, int64_t step, const Strips& strips, int64_t n) { scatter(strips, from, step, n); });
}

}  // namespace lpk::engine
