#include <stdexcept>

#include "tiling.h"

namespace lpk::engine {

int64_t lane_together() { return loops().lane_together; }

void pack_lane_filters(float* packed, int32_t* offsets, const float* weights, const Convolution& convolution,
                       const Activations& in, int64_t together, int threads) {
  const int64_t size = convolution.weights();
  for (int64_t i = 0; i < size; ++i) offsets[i] = int32_t(weight_offset(convolution, in, i));
  parallel_for((convolution.filters + together - 1) / together, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group) {
      float* const to = packed + group * size * together;
      for (int64_t j = 0; j < together; ++j) {
        const int64_t k = group * together + j;
        for (int64_t i = 0; i < size; ++i)
          to[i * together + j] = k < convolution.filters ? weights[k * size + i] : 0.0f;
      }
    }
  });
}

void lane_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                      const LaneFilters& filters, int64_t lanes, const Epilogue& epilogue, int threads) {
  if (filters.together != lane_together())
    throw std::invalid_argument("the filters were packed for another instruction set");
  const Activations* const residual = epilogue.residual;
  const LaneTask task{filters,
                      convolution.weights(),
                      convolution.filters,
                      lanes,
                      in.pixel(0, -convolution.padding_y, -convolution.padding_x),
                      out.pixel(0, 0, 0),
                      residual == nullptr ? nullptr : residual->pixel(0, 0, 0),
                      in.block_stride,
                      out.block_stride,
                      residual == nullptr ? 0 : residual->block_stride,
                      finish_of(epilogue, out)};
  const int64_t groups = (convolution.filters + filters.together - 1) / filters.together;
  threads = threads_for(convolution.weights() * convolution.filters / 4, threads);
  parallel_for(groups, threads, [&](int64_t begin, int64_t end, int) {
    const int64_t pixels = (lanes * filters.together + kImages - 1) / kImages + 1;
    const Sums sums(pixels);
    loops().lanes(task, begin, end, sums.data());
  });
}

}  // namespace lpk::engine
