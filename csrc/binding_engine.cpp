// The inference engine's part of lpk._core. Tensors arrive as addresses: lpk/sparse/kernels.py has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/engine/engine.h"

namespace py = pybind11;

namespace {

using namespace lpk::engine;
using Release = py::call_guard<py::gil_scoped_release>;

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }
int64_t* integers(uintptr_t address) { return reinterpret_cast<int64_t*>(address); }

void define_shapes(py::module_& m) {
  py::class_<Activations>(m, "Activations")
      .def(py::init([](uintptr_t data, int64_t blocks, int64_t channels, int64_t height, int64_t width, int64_t border,
                       int64_t block_stride) {
             return Activations{floats(data), blocks, channels, height, width, border, block_stride};
           }),
           py::arg("data"), py::arg("blocks"), py::arg("channels"), py::arg("height"), py::arg("width"),
           py::arg("border"), py::arg("block_stride"));
  using Pair = std::array<int64_t, 2>;
  py::class_<Convolution>(m, "Convolution")
      .def(py::init([](int64_t filters, int64_t channels, int64_t groups, Pair kernel, Pair stride, Pair padding,
                       Pair dilation) {
             return Convolution{filters,   channels,   groups,     kernel[0],   kernel[1],  stride[0],
                                stride[1], padding[0], padding[1], dilation[0], dilation[1]};
           }),
           py::arg("filters"), py::arg("channels"), py::arg("groups"), py::arg("kernel"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"));
  py::class_<Window>(m, "Window")
      .def(py::init([](Pair kernel, Pair stride, Pair padding, Pair dilation) {
             return Window{kernel[0],  kernel[1],  stride[0],   stride[1],
                           padding[0], padding[1], dilation[0], dilation[1]};
           }),
           py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"));
}

}  // namespace

void define_engine(py::module_& m) {
  define_shapes(m);
  m.def(
      "pack_input",
      [](const Activations& out, uintptr_t in, int64_t batch, const std::array<int64_t, 4>& strides, int threads) {
        pack_input(out, floats(in), batch, strides.data(), threads);
      },
      Release());
  m.def(
      "unpack_output",
      [](uintptr_t out, const Activations& in, int64_t batch, int threads) {
        unpack_output(floats(out), in, batch, threads);
      },
      Release());
  m.def(
      "count_filters",
      [](uintptr_t start, uintptr_t weights, const Convolution& convolution, int64_t channels_per_block, int threads) {
        count_filters(integers(start), floats(weights), convolution, channels_per_block, threads);
      },
      Release());
  m.def(
      "pack_filters",
      [](uintptr_t entries, uintptr_t start, uintptr_t weights, uintptr_t scale, const Convolution& convolution,
         const Activations& in, int64_t channels_per_block, int threads) {
        pack_filters(reinterpret_cast<NonZero*>(entries), integers(start), floats(weights), floats(scale), convolution,
                     in, channels_per_block, threads);
      },
      Release());
  m.def("best_channels_per_block", &best_channels_per_block);
  m.def(
      "sparse_convolution",
      [](const Activations& out, const Activations& in, const Convolution& convolution, uintptr_t entries,
         uintptr_t start, int64_t channels_per_block, uintptr_t bias, const Activations* residual, int activation,
         int threads) {
        sparse_convolution(out, in, convolution,
                           {reinterpret_cast<const NonZero*>(entries), integers(start), channels_per_block},
                           {floats(bias), residual, Activation(activation)}, threads);
      },
      Release());
  m.def("dense_filters_size", &dense_filters_size);
  m.def(
      "pack_dense_filters",
      [](uintptr_t packed, uintptr_t offsets, uintptr_t weights, uintptr_t scale, const Convolution& convolution,
         const Activations& in, int threads) {
        pack_dense_filters(floats(packed), reinterpret_cast<int32_t*>(offsets), floats(weights), floats(scale),
                           convolution, in, threads);
      },
      Release());
  m.def(
      "dense_convolution",
      [](const Activations& out, const Activations& in, const Convolution& convolution, uintptr_t weights,
         uintptr_t offsets, uintptr_t bias, const Activations* residual, int activation, int threads) {
        dense_convolution(out, in, convolution, {floats(weights), reinterpret_cast<const int32_t*>(offsets)},
                          {floats(bias), residual, Activation(activation)}, threads);
      },
      Release());
  m.def(
      "channel_statistics",
      [](uintptr_t mean, uintptr_t variance, const Activations& in, int64_t batch, int threads) {
        channel_statistics(reinterpret_cast<double*>(mean), reinterpret_cast<double*>(variance), in, batch, threads);
      },
      Release());
  m.def(
      "scale_shift",
      [](const Activations& out, const Activations& in, uintptr_t scale, uintptr_t shift, const Activations* residual,
         int activation, int threads) {
        scale_shift(out, in, floats(scale), floats(shift), residual, Activation(activation), threads);
      },
      Release());
  m.def("max_pool", &max_pool, Release());
  m.def("average_pool", &average_pool, Release());
  m.def("global_average_pool", &global_average_pool, Release());
}
