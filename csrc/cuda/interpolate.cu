// x = fma(alpha, a, beta * b), element by element.
#include "elements.cuh"

namespace lpk::cuda {
namespace {

template <class D>
__global__ void interpolate_kernel(Vectors v, typename D::Stored* out, Scalar<float> alpha) {
  for (int64_t i = first_index(); i < v.n; i += stride()) {
    const auto x = element<D>(v, get(alpha), i);
    if (!finite(D::widen(x))) report(v, i);
    out[i] = x;
  }
}

}  // namespace

void interpolate(void* out, const Vectors& v, Scalar<float> alpha) {
  if (v.n == 0) return;
  for_dtype(v.dtype, [&](auto dtype) {
    using D = decltype(dtype);
    LPK_LAUNCH(interpolate_kernel<D>, blocks_for((v.n + kThreads - 1) / kThreads), kThreads, v.stream, v,
               static_cast<typename D::Stored*>(out), alpha);
  });
  check_launch();
}

}  // namespace lpk::cuda
