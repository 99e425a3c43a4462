// The CUDA operations on device pointers and a stream. Nothing here waits for the device or allocates on it: what an
// operation needs is handed in by the caller. The first element that is NaN or infinite is reported in a status word on
// the device.
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

constexpr int kMostCoefficients = 16;  // of one launch; more are done in turns

// Coefficients that are known on the host, which need no copy to the device, or lie there.
struct Coefficients {
  float values[kMostCoefficients];
  const float* device;  // null: `values` hold
};

// `count` numbers in a row.
struct Numbers {
  const float* at;
  bool on_device;

  // Those from `first` on, as kernels take them: kMostCoefficients at most.
  Coefficients from(int first, int count) const {
    Coefficients some{};
    if (on_device) {
      some.device = at + first;
    } else {
      for (int k = 0; k < count && k < kMostCoefficients; ++k) some.values[k] = at[first + k];
    }
    return some;
  }
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
// out: [count][n]; values and last: `count` numbers each, on the device, and alphas, there or on the host.
void interpolate_prune_all(void* out, const Vectors& vectors, Numbers alphas, const float* values, const int64_t* last,
                           int count);
void magnitude_mask(bool* out, const Vectors& vectors, Scalar<float> value, Scalar<int64_t> last);

// values and last: `count` numbers each, on the device, and alphas, there or on the host; 1 <= keep <= n. The workspace has
// workspace_bytes(n, count) bytes, aligned to 256, and needs no initialization.
void interpolate_threshold(float* values, int64_t* last, const Vectors& vectors, Numbers alphas, int count, int64_t keep,
                           void* workspace);
int64_t workspace_bytes(int64_t n, int count);

// The operations above with their thresholds found first, in the workspace.
void find_and_prune(void* out, const Vectors& vectors, Scalar<float> alpha, int64_t keep, void* workspace);
void find_and_prune_all(void* out, const Vectors& vectors, Numbers alphas, int count, int64_t keep, void* workspace);
void find_and_mask(bool* out, const Vectors& vectors, int64_t keep, void* workspace);

// When the phases of the last search that used a workspace began, and when it ended, in clocks of one multiprocessor; 0 where
// there was no further one. [kMostStamps], in the workspace.
constexpr int kMostStamps = 16;
const long long* phases(void* workspace, int64_t n, int count);

}  // namespace lpk::cuda
