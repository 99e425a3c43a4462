// The extension module lpk._core. Tensors arrive as addresses: lpk/ops has checked dtype, size, contiguity and overlap.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <utility>

#include "cpu/operations.h"

namespace py = pybind11;

void define_engine(py::module_& m);  // binding_engine.cpp
void define_cuda(py::module_& m);    // binding_cuda.cpp

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

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled kernels of lpk; use lpk.ops.";
  lpk::cpu::instruction_set();  // an LPK_CPU that is not usable is an ImportError

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
