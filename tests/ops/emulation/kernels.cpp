// The CUDA kernels as a shared library for ctypes, emulated.
#include "cuda.h"

#include <string>

#include "cuda/interpolate.cu"
#include "cuda/interpolate_prune.cu"
#include "cuda/interpolate_threshold.cu"
#include "cuda/magnitude_mask.cu"

using lpk::Dtype;
using lpk::cuda::Vectors;

extern "C" {

void run_backwards(int backwards) { emulation::backwards = backwards != 0; }

void interpolate(void* out, const void* a, const void* b, int64_t n, int dtype, int64_t* first_bad, float alpha) {
  lpk::cuda::interpolate(out, Vectors{a, b, n, Dtype(dtype), nullptr, first_bad}, {alpha, nullptr});
}

// stored: of the last coefficients that were done together, how many entries the sweep stored in all; -1 unless all their
// thresholds were found among these.
void interpolate_threshold(float* values, int64_t* last, const void* a, const void* b, int64_t n, int dtype,
                           int64_t* first_bad, const float* alphas, int on_device, int count, int64_t keep, int64_t* stored) {
  std::vector<char> workspace(std::size_t(lpk::cuda::workspace_bytes(n, count)), char(0x5a));
  lpk::cuda::interpolate_threshold(values, last, Vectors{a, b, n, Dtype(dtype), nullptr, first_bad}, {alphas, on_device != 0}, count, keep,
                                   workspace.data());
  const int together = (count - 1) % lpk::cuda::kMostCoefficients + 1;
  lpk::cuda::Workspace w{};
  lpk::cuda::divide(w, workspace.data(), n, together);
  *stored = 0;
  for (int k = 0; k < together && *stored >= 0; ++k)
    *stored = w.states[k].listed > 0 ? *stored + int64_t(w.states[k].stored) : -1;
}

// The scalars lie on the device here.
void interpolate_prune(void* out, const void* a, const void* b, int64_t n, int dtype, int64_t* first_bad,
                       const float* alpha, const float* value, const int64_t* last) {
  lpk::cuda::interpolate_prune(out, Vectors{a, b, n, Dtype(dtype), nullptr, first_bad}, {0, alpha}, {0, value},
                               {0, last});
}

void interpolate_prune_all(void* out, const void* a, const void* b, int64_t n, int dtype, int64_t* first_bad,
                           const float* alphas, int on_device, const float* values, const int64_t* last, int count) {
  lpk::cuda::interpolate_prune_all(out, Vectors{a, b, n, Dtype(dtype), nullptr, first_bad}, {alphas, on_device != 0}, values,
                                   last, count);
}

// With their thresholds found first. phases: how many there were.
void find_and_prune(void* out, const void* a, const void* b, int64_t n, int dtype, int64_t* first_bad, const float* alphas,
                    int on_device, int count, int64_t keep, int* phases) {
  std::vector<char> workspace(std::size_t(lpk::cuda::workspace_bytes(n, count)), char(0x5a));
  const Vectors v{a, b, n, Dtype(dtype), nullptr, first_bad};
  if (count == 1) {
    lpk::cuda::find_and_prune(out, v, on_device ? lpk::cuda::Scalar<float>{0, alphas} : lpk::cuda::Scalar<float>{*alphas}, keep, workspace.data());
  } else {
    lpk::cuda::find_and_prune_all(out, v, {alphas, on_device != 0}, count, keep, workspace.data());
  }
  const long long* stamps = lpk::cuda::phases(workspace.data(), n, std::min(count, lpk::cuda::kMostCoefficients));
  *phases = 0;
  while (stamps[*phases + 1] > stamps[*phases]) ++*phases;
}

void find_and_mask(bool* out, const void* x, int64_t n, int dtype, int64_t* first_bad, int64_t keep) {
  std::vector<char> workspace(std::size_t(lpk::cuda::workspace_bytes(n, 1)), char(0x5a));
  lpk::cuda::find_and_mask(out, Vectors{x, nullptr, n, Dtype(dtype), nullptr, first_bad}, keep, workspace.data());
}

void magnitude_mask(bool* out, const void* x, int64_t n, int dtype, int64_t* first_bad, float value, int64_t last) {
  lpk::cuda::magnitude_mask(out, Vectors{x, nullptr, n, Dtype(dtype), nullptr, first_bad}, {value, nullptr},
                            {last, nullptr});
}

int64_t sample_position(int64_t n, int64_t count, int64_t i) { return lpk::cuda::sample_position(n, count, i); }

}
