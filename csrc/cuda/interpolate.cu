// x = fma(alpha, a, beta * b), element by element.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void interpolate_kernel(Vectors v, typename D::Stored* out, Scalar<float> alpha) {
  map_tile(v, own_tile<D>(v), get(alpha), out, [](auto x, int64_t) { return x; });
}

}  // namespace

void interpolate(void* out, const Vectors& v, Scalar<float> alpha) {
  if (v.n == 0) return;
  for_dtype(v.dtype, [&](auto dtype) {
    using D = decltype(dtype);
    LPK_LAUNCH(interpolate_kernel<D>, unsigned(tiles(v.n)), kThreads, v.stream, v,
               static_cast<typename D::Stored*>(out), alpha);
  });
  check_launch();
}

}  // namespace lpk::cuda
