// The CUDA kernels' part of lpk._core. Tensors arrive as addresses on the device: lpk/ops has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "cuda/operations.h"

namespace py = pybind11;

namespace {

using Release = py::call_guard<py::gil_scoped_release>;

// On a GPU a number is a value, or the address of one on the device where that is not 0.
template <class T>
using DeviceScalar = std::pair<T, uintptr_t>;

template <class T>
lpk::cuda::Scalar<T> scalar(const DeviceScalar<T>& s) {
  return {s.first, reinterpret_cast<const T*>(s.second)};
}

// And a row of numbers: values, or the address of a row on the device where that is not 0.
using DeviceNumbers = std::pair<std::vector<float>, uintptr_t>;

lpk::cuda::Numbers numbers(const DeviceNumbers& row) {
  if (row.second) return {reinterpret_cast<const float*>(row.second), true};
  return {row.first.data(), false};
}

lpk::cuda::Vectors vectors(uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad) {
  return {reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b), n, static_cast<lpk::Dtype>(dtype),
          reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<int64_t*>(first_bad)};
}

}  // namespace

void define_cuda(py::module_& m) {
  m.def(
      "cuda_interpolate",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceScalar<float>& alpha) {
        lpk::cuda::interpolate(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad), scalar(alpha));
      },
      Release());
  m.def("cuda_workspace_bytes", &lpk::cuda::workspace_bytes);
  m.def(
      "cuda_interpolate_threshold",
      [](uintptr_t values, uintptr_t last, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream,
         uintptr_t first_bad, const DeviceNumbers& alphas, int count, int64_t keep, uintptr_t workspace) {
        lpk::cuda::interpolate_threshold(reinterpret_cast<float*>(values), reinterpret_cast<int64_t*>(last),
                                         vectors(a, b, n, dtype, stream, first_bad),
                                         numbers(alphas), count, keep,
                                         reinterpret_cast<void*>(workspace));
      },
      Release());
  m.def(
      "cuda_interpolate_prune",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceScalar<float>& alpha, const DeviceScalar<float>& value, const DeviceScalar<int64_t>& last) {
        lpk::cuda::interpolate_prune(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad),
                                     scalar(alpha), scalar(value), scalar(last));
      },
      Release());
  m.def(
      "cuda_interpolate_prune_all",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceNumbers& alphas, uintptr_t values, uintptr_t last, int count) {
        lpk::cuda::interpolate_prune_all(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad),
                                         numbers(alphas), reinterpret_cast<const float*>(values),
                                         reinterpret_cast<const int64_t*>(last), count);
      },
      Release());
  m.def(
      "cuda_magnitude_mask",
      [](uintptr_t out, uintptr_t x, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceScalar<float>& value, const DeviceScalar<int64_t>& last) {
        lpk::cuda::magnitude_mask(reinterpret_cast<bool*>(out), vectors(x, 0, n, dtype, stream, first_bad),
                                  scalar(value), scalar(last));
      },
      Release());
  m.def(
      "cuda_find_and_prune",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceScalar<float>& alpha, int64_t keep, uintptr_t workspace) {
        lpk::cuda::find_and_prune(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad),
                                  scalar(alpha), keep, reinterpret_cast<void*>(workspace));
      },
      Release());
  m.def(
      "cuda_find_and_prune_all",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad,
         const DeviceNumbers& alphas, int count, int64_t keep, uintptr_t workspace) {
        lpk::cuda::find_and_prune_all(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad),
                                      numbers(alphas), count, keep, reinterpret_cast<void*>(workspace));
      },
      Release());
  m.def(
      "cuda_find_and_mask",
      [](uintptr_t out, uintptr_t x, int64_t n, int dtype, uintptr_t stream, uintptr_t first_bad, int64_t keep,
         uintptr_t workspace) {
        lpk::cuda::find_and_mask(reinterpret_cast<bool*>(out), vectors(x, 0, n, dtype, stream, first_bad), keep,
                                 reinterpret_cast<void*>(workspace));
      },
      Release());
  m.def("cuda_phases", [](uintptr_t workspace, int64_t n, int count) {
    return reinterpret_cast<uintptr_t>(lpk::cuda::phases(reinterpret_cast<void*>(workspace), n, count)) - workspace;
  });
}
