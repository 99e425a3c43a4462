// What a threshold makes of a tile: the pruned interpolation, or the mask of what survives.
#pragma once

#include "elements.cuh"

namespace lpk::cuda {

template <class D>
__device__ void prune_tile(const Vectors& v, const Tile<D>& tile, typename D::Stored* out, float alpha,
                           const Threshold& threshold) {
  map_tile(v, tile, alpha, out, [&](auto x, int64_t i) {
    return threshold.survived_by(D::widen(x), i) ? x : D::narrow(0.0f);
  });
}

template <class D>
__device__ void mask_tile(const Vectors& v, const Tile<D>& tile, bool* out, const Threshold& threshold) {
  map_tile(v, tile, 1.0f, out, [&](auto x, int64_t i) { return threshold.survived_by(D::widen(x), i); });
}

}  // namespace lpk::cuda
