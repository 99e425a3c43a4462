// The CUDA operations on device pointers and a stream. Nothing here waits for the device; what is allocated is the
// caller's. The first element that is NaN or infinite is reported in a status word on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cpu/loops.h"

namespace lpk::cuda {

// A number that is known on the host, or lies on the device and is never read on the host.
template <class T>
struct Scalar {
  T value;
  const T* device;  // null: `value` holds
};

struct Vectors {
  const void* a;
  const void* b;  // null: x = a
  int64_t n;
  Dtype dtype;
  cudaStream_t stream;
  int64_t* first_bad;  // lowered to the index of the first x that is not finite; n or more beforehand
};

void interpolate(void* out, const Vectors& vectors, Scalar<float> alpha);
void interpolate_prune(void* out, const Vectors& vectors, Scalar<float> alpha, Scalar<float> value,
                       Scalar<int64_t> last);
void magnitude_mask(bool* out, const Vectors& vectors, Scalar<float> value, Scalar<int64_t> last);

}  // namespace lpk::cuda
