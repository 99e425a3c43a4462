// CUB's DeviceTopK of |x|, for bench/cub_peer.py. As in CUB, a function without storage only says how much it needs.
//
// DeviceTopK takes 32-bit sizes and any k, and compiles with these requirements alone: which of several equal magnitudes at the
// keep-th place are returned, and in which order, may differ from run to run. DeviceBatchedTopK can prefer the smaller index since
// CCCL 3.6, but for segments of at most 2^21 items, so that it is of no use for one long vector.

#if !__has_include(<cub/device/device_topk.cuh>)
#error "these headers have no cub::DeviceTopK, which came with CCCL 3.3; pip install nvidia-cuda-cccl brings newer ones"
#else

#include <cub/device/device_topk.cuh>
#include <cuda/iterator>
#include <cuda/std/execution>
#include <cuda/stream_ref>

#include <cstddef>
#include <cstdint>

namespace {

struct Magnitude {
  __host__ __device__ float operator()(float x) const { return fabsf(x); }
};

// So that no pass is needed that only writes |x|.
auto magnitudes(const float* x) { return cuda::make_transform_iterator(x, Magnitude{}); }

auto environment(cudaStream_t stream) {
  namespace execution = cuda::execution;
  return cuda::std::execution::env{
      execution::require(execution::determinism::not_guaranteed, execution::output_ordering::unsorted),
      cuda::stream_ref{stream}};
}

}  // namespace

extern "C" {

// The `keep` largest |x|. Returns a cudaError_t, as the other one.
int largest_magnitudes(void* storage, std::size_t* bytes, const float* x, float* out, std::uint32_t n, std::uint32_t keep,
                       cudaStream_t stream) {
  return cub::DeviceTopK::MaxKeys(storage, *bytes, magnitudes(x), out, n, keep, environment(stream));
}

// Where they stand.
int largest_indices(void* storage, std::size_t* bytes, const float* x, std::int64_t* out, std::uint32_t n, std::uint32_t keep,
                    cudaStream_t stream) {
  return cub::DeviceTopK::MaxPairs(storage, *bytes, magnitudes(x), cuda::make_discard_iterator(),
                                   cuda::make_counting_iterator(std::int64_t{0}), out, n, keep, environment(stream));
}

}  // extern "C"

#endif
