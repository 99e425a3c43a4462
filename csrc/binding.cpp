// The extension module lpk._core. Tensors arrive as addresses: lpk/ops has checked dtype, size, contiguity and overlap.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <utility>

#include "cpu/operations.h"
#ifdef LPK_CUDA
#include "cuda/operations.h"
#endif

namespace py = pybind11;

void define_engine(py::module_& m);  // binding_engine.cpp

namespace {

using lpk::cpu::Support;
using lpk::cpu::Threshold;
using lpk::cpu::Vectors;
using Release = py::call_guard<py::gil_scoped_release>;

Vectors vectors(uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads) {
  return {reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b), n, static_cast<lpk::Dtype>(dtype), threads};
}

Support support(uintptr_t bits, uintptr_t positions, int64_t n) {
  return {reinterpret_cast<uint8_t*>(bits), reinterpret_cast<int64_t*>(positions), n};
}

// A threshold crosses into Python as its bits: a conversion to Python's float would flush a denormal where the calling
// process has set that (torch.set_flush_denormal).
Threshold threshold(int32_t bits, int64_t last) {
  Threshold result{0.0f, last};
  std::memcpy(&result.value, &bits, 4);
  return result;
}

int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

#ifdef LPK_CUDA

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
         const DeviceNumbers& alpha, int64_t keep, uintptr_t workspace) {
        lpk::cuda::find_and_prune(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, stream, first_bad),
                                  numbers(alpha), keep, reinterpret_cast<void*>(workspace));
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

#endif

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled kernels of lpk; use lpk.ops.";

  m.def(
      "interpolate",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads, float alpha) {
        lpk::cpu::interpolate(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, threads), alpha);
      },
      Release());
  m.def(
      "interpolate_threshold",
      [](uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads, const std::vector<float>& alphas, int64_t keep) {
        std::pair<std::vector<int32_t>, std::vector<int64_t>> result;
        for (const Threshold& t : lpk::cpu::interpolate_threshold(vectors(a, b, n, dtype, threads), alphas, keep)) {
          result.first.push_back(bits_of(t.value));
          result.second.push_back(t.last);
        }
        return result;
      },
      Release());
  m.def(
      "interpolate_prune",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads, float alpha, int32_t bits,
         int64_t last) {
        lpk::cpu::interpolate_prune(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, threads), alpha,
                                    threshold(bits, last));
      },
      Release());
  m.def(
      "interpolate_prune_all",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads, const std::vector<float>& alphas,
         const std::vector<int32_t>& bits, const std::vector<int64_t>& last) {
        std::vector<Threshold> thresholds;
        for (size_t k = 0; k < alphas.size(); ++k) thresholds.push_back(threshold(bits.at(k), last.at(k)));
        lpk::cpu::interpolate_prune_all(reinterpret_cast<void*>(out), vectors(a, b, n, dtype, threads), alphas,
                                        thresholds);
      },
      Release());
  m.def(
      "magnitude_mask",
      [](uintptr_t out, uintptr_t x, int64_t n, int dtype, int threads, int32_t bits, int64_t last) {
        lpk::cpu::magnitude_mask(reinterpret_cast<uint8_t*>(out), vectors(x, 0, n, dtype, threads),
                                 threshold(bits, last));
      },
      Release());
  m.def(
      "find_support",
      [](uintptr_t bits, uintptr_t positions, uintptr_t a, uintptr_t b, int64_t n, int dtype, int threads) {
        return lpk::cpu::find_support(support(bits, positions, n), vectors(a, b, n, dtype, threads));
      },
      Release());
  m.def(
      "pack",
      [](uintptr_t out, uintptr_t x, int64_t n, int dtype, int threads, uintptr_t bits, uintptr_t positions) {
        lpk::cpu::pack(reinterpret_cast<void*>(out), vectors(x, 0, n, dtype, threads), support(bits, positions, n));
      },
      Release());
  m.def(
      "interpolate_prune_packed",
      [](uintptr_t out, uintptr_t a, uintptr_t b, int64_t m, int dtype, int threads, uintptr_t bits, uintptr_t positions,
         int64_t n, float alpha, int32_t threshold_bits, int64_t last) {
        lpk::cpu::interpolate_prune_packed(reinterpret_cast<void*>(out), vectors(a, b, m, dtype, threads),
                                           support(bits, positions, n), alpha, threshold(threshold_bits, last));
      },
      Release());
  m.attr("chunk") = lpk::cpu::kChunk;

  define_engine(m);

  m.def("instruction_set", &lpk::cpu::instruction_set);
  m.def("instruction_sets", &lpk::cpu::instruction_sets);
  m.def("set_instruction_set", &lpk::cpu::set_instruction_set);
  m.def("set_selection", &lpk::cpu::set_selection);
  m.def("sample_positions", &lpk::cpu::sample_positions);

#ifdef LPK_TORCH_VERSION
  m.attr("torch_version") = LPK_TORCH_VERSION;  // that lpk._plain was compiled for
#else
  m.attr("torch_version") = "";
#endif
#ifdef LPK_CUDA
  define_cuda(m);
  m.attr("cuda_compiled") = true;
  m.attr("cuda_architectures") = LPK_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_compiled") = false;
  m.attr("cuda_architectures") = "";
#endif
}
