// The inference engine's part of lpk._core. Tensors arrive as addresses: lpk/sparse has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cpu/engine/compiled.h"
#include "cpu/engine/operation.h"
#include "cpu/engine/work.h"

namespace py = pybind11;

namespace {

using namespace lpk::engine;
using Release = py::call_guard<py::gil_scoped_release>;

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }
int64_t* integers(uintptr_t address) { return reinterpret_cast<int64_t*>(address); }

void define_shapes(py::module_& m) {
  using Pair = std::array<int64_t, 2>;
  py::class_<Activations>(m, "Activations")
      .def(py::init([](uintptr_t data, int64_t blocks, int64_t channels, int64_t height, int64_t width, int64_t border,
                       int64_t block_stride, int64_t channel_stride, int64_t row_stride, Pair patches, Pair image,
                       bool by_thread) {
             return Activations{floats(data), blocks,         channels,
                                height,       width,          border,
                                block_stride, channel_stride, row_stride,
                                {patches[0], patches[1], image[0], image[1]},
                                by_thread};
           }),
           py::arg("data"), py::arg("blocks"), py::arg("channels"), py::arg("height"), py::arg("width"),
           py::arg("border"), py::arg("block_stride"), py::arg("channel_stride"), py::arg("row_stride"),
           py::arg("patches"), py::arg("image"), py::arg("by_thread"));
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

void define_filters(py::module_& m) {
  m.def(
      "count_filters",
      [](uintptr_t start, uintptr_t weights, const Convolution& convolution, int64_t channels_per_block, int threads) {
        count_filters(integers(start), floats(weights), convolution, channels_per_block, threads);
      },
      Release());
  m.def(
      "pack_filters",
      [](uintptr_t entries, uintptr_t start, uintptr_t weights, const Convolution& convolution, const Activations& in,
         int64_t channels_per_block, int64_t gathered, int threads) {
        pack_filters(reinterpret_cast<NonZero*>(entries), integers(start), floats(weights), convolution, in,
                     channels_per_block, gathered, threads);
      },
      Release());
  py::class_<CompiledFilters, std::shared_ptr<CompiledFilters>>(m, "CompiledFilters")
      .def(py::init([](uintptr_t weights, const Convolution& convolution, const Activations& in, int threads) {
             return std::make_shared<CompiledFilters>(floats(weights), convolution, in, threads);
           }),
           Release())
      .def_property_readonly("nonzeros", &CompiledFilters::nonzeros)
      .def_property_readonly("bytes", &CompiledFilters::bytes);
  m.def("compiles", py::overload_cast<const Convolution&, const Activations&>(&compiles));
  m.def("sparse_cost", &sparse_cost);
  m.def("compiled_cost", &compiled_cost);
  m.def("lane_cost", &lane_cost);
  m.def("winograd_cost", &winograd_cost);
  m.def("best_gathered", &best_gathered);
  m.def("best_channels_per_block", &best_channels_per_block);
  m.def("dense_filters_size", &dense_filters_size);
  m.def(
      "pack_dense_filters",
      [](uintptr_t packed, uintptr_t offsets, uintptr_t weights, const Convolution& convolution, const Activations& in,
         int threads) {
        pack_dense_filters(floats(packed), reinterpret_cast<int32_t*>(offsets), floats(weights), convolution, in,
                           threads);
      },
      Release());
  m.def("lane_together", &lane_together);
  m.def(
      "pack_lane_filters",
      [](uintptr_t packed, uintptr_t offsets, uintptr_t weights, const Convolution& convolution, const Activations& in,
         int64_t together, int threads) {
        pack_lane_filters(floats(packed), reinterpret_cast<int32_t*>(offsets), floats(weights), convolution, in,
                          together, threads);
      },
      Release());
  m.def("winograd_applies", &winograd_applies);
  m.def("winograd_together", &winograd_together);
  m.def("winograd_filters_size", &winograd_filters_size);
  m.def(
      "pack_winograd_filters",
      [](uintptr_t packed, uintptr_t weights, const Convolution& convolution, int64_t together, int threads) {
        pack_winograd_filters(floats(packed), floats(weights), convolution, together, threads);
      },
      Release());
}

// What follows a sum, as Python hands it over.
struct Ending {
  uintptr_t scale;
  uintptr_t bias;
  std::optional<Activations> residual;
  Activation activation;
  float slope;

  // The function's argument for a part of the blocks.
  template <class Function>
  void with_part(const Part& part, Function&& function) const {
    if (!residual) return function(Epilogue{floats(scale), floats(bias), nullptr, activation, slope});
    const Activations some = residual->some(part);
    function(Epilogue{floats(scale), floats(bias), &some, activation, slope});
  }
};

// An operation from `body(out, in, threads)`, which is called with a part of the blocks of both.
template <class Body>
Operation operation(const Activations& out, const Activations& in, Body body) {
  return {out.blocks, [=](const Part& part, int threads) {
            body(out.some(part), in.some(part), threads);
          }};
}

// The same, with the epilogue as a further argument.
template <class Body>
Operation operation(const Activations& out, const Activations& in, const Ending& ending, Body body) {
  return {out.blocks, [=](const Part& part, int threads) {
            ending.with_part(part, [&](const Epilogue& epilogue) {
              body(out.some(part), in.some(part), epilogue, threads);
            });
          }};
}

// Whether each block of one holds the images that the same block of the other does.
bool same_blocks(const Activations& a, const Activations& b) { return a.patches.count() == b.patches.count(); }

using Triple = std::array<int64_t, 3>;
Heads heads_of(const Triple& heads) { return {heads[0], heads[1], heads[2]}; }

void define_operations(py::module_& m) {
  py::class_<Operation>(m, "Operation");
  m.def("run", &run, Release());
  m.def("seconds", &seconds, Release());
  m.def("set_least_work", &set_least_work);
  py::class_<Ending>(m, "Ending")
      .def(py::init([](uintptr_t scale, uintptr_t bias, const Activations* residual, int activation,
                       float slope) {
             std::optional<Activations> added;
             if (residual != nullptr) added = *residual;
             return Ending{scale, bias, added, Activation(activation), slope};
           }),
           py::arg("scale"), py::arg("bias"), py::arg("residual"), py::arg("activation"), py::arg("slope"));
  m.def("exchange_borders", [](const Activations& x, float outside) {
    const auto exchanges = exchanges_of(x);
    return operation(x, x, [=](const Activations& some, const Activations&, int threads) {
      exchange_borders(some, *exchanges, outside, threads);
    });
  });
  m.def("sparse_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                                 uintptr_t entries, uintptr_t start, uintptr_t work, int64_t channels_per_block,
                                 int64_t gathered, const Ending& ending) {
    const SparseFilters filters{reinterpret_cast<const NonZero*>(entries), integers(start), integers(work),
                                channels_per_block, gathered};
    return operation(out, in, ending, [=](const Activations& to, const Activations& from, const Epilogue& epilogue,
                                          int threads) {
      sparse_convolution(to, from, convolution, filters, epilogue, threads);
    });
  });
  m.def("compiled_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                                   const std::shared_ptr<CompiledFilters>& filters, const Ending& ending) {
    return operation(out, in, ending, [=](const Activations& to, const Activations& from, const Epilogue& epilogue,
                                          int threads) {
      compiled_convolution(to, from, convolution, *filters, epilogue, threads);
    });
  });
  m.def("depthwise_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                                    uintptr_t entries, uintptr_t start, const Ending& ending) {
    const SparseFilters filters{reinterpret_cast<const NonZero*>(entries), integers(start), nullptr,
                                convolution.channels, 0};
    return operation(out, in, ending, [=](const Activations& to, const Activations& from, const Epilogue& epilogue,
                                          int threads) {
      depthwise_convolution(to, from, convolution, filters, epilogue, threads);
    });
  });
  m.def("dense_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                                uintptr_t weights, uintptr_t offsets, const Ending& ending) {
    const DenseFilters filters{floats(weights), reinterpret_cast<const int32_t*>(offsets)};
    return operation(out, in, ending, [=](const Activations& to, const Activations& from, const Epilogue& epilogue,
                                          int threads) {
      dense_convolution(to, from, convolution, filters, epilogue, threads);
    });
  });
  m.def("lane_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                               uintptr_t weights, uintptr_t offsets, int64_t together, int64_t lanes,
                               const Ending& ending) {
    const LaneFilters filters{floats(weights), reinterpret_cast<const int32_t*>(offsets), together};
    return Operation{out.blocks, [=](const Part& part, int threads) {
                       ending.with_part(part, [&](const Epilogue& epilogue) {
                         const int64_t some = std::min(lanes - part.first * kImages, part.count * kImages);
                         lane_convolution(out.some(part), in.some(part), convolution, filters, some, epilogue,
                                          threads);
                       });
                     }};
  });
  m.def("winograd_convolution", [](const Activations& out, const Activations& in, const Convolution& convolution,
                                   uintptr_t weights, int64_t together, const Ending& ending) {
    const WinogradFilters filters{floats(weights), together};
    return operation(out, in, ending, [=](const Activations& to, const Activations& from, const Epilogue& epilogue,
                                          int threads) {
      winograd_convolution(to, from, convolution, filters, epilogue, threads);
    });
  });
  m.def("scale_shift", [](const Activations& out, const Activations& in, const Ending& ending) {
    return operation(out, in, ending, scale_shift);
  });
  m.def("multiply", [](const Activations& out, const Activations& x, const Activations& y, int activation, float slope) {
    const bool alike = same_blocks(x, y);  // else y has one pixel of each image, and is read by its number
    return Operation{out.blocks, [=](const Part& part, int threads) {
                       multiply(out.some(part), x.some(part), alike ? y.some(part) : y, Activation(activation), slope,
                                alike ? 0 : part.first, threads);
                     }};
  });
  m.def("layer_norm", [](const Activations& out, const Activations& in, uintptr_t weight, uintptr_t bias, float epsilon) {
    const LayerNorm norm{floats(weight), floats(bias), epsilon};
    return operation(out, in, [=](const Activations& to, const Activations& from, int threads) {
      layer_norm(to, from, norm, threads);
    });
  });
  m.def("attention", [](const Activations& out, const Activations& query, const Activations& key,
                        const Activations& value, const std::array<Triple, 3>& heads, int64_t count, int64_t size,
                        float scale) {
    const auto [queries, keys, values] = heads;
    const Attention task{heads_of(queries), heads_of(keys), heads_of(values), count, size, scale};
    const Tokens tokens{tokens_of(key), tokens_of(value)};
    return Operation{out.blocks, [=](const Part& part, int threads) {
                       attention(out.some(part), query.some(part), key.some(part), value.some(part), task, tokens,
                                 threads);
                     }};
  });
  m.def("pick_channels", [](const Activations& out, const Activations& in, uintptr_t channels) {
    return operation(out, in, [=](const Activations& to, const Activations& from, int threads) {
      pick_channels(to, from, integers(channels), threads);
    });
  });
  m.def("relayout", [](const Activations& out, const Activations& in, int64_t batch) {
    const auto moves = moves_of(out, in);
    const bool alike = same_blocks(out, in);
    const int64_t images = kImages / out.patches.count();  // in a block
    return Operation{out.blocks, [=](const Part& part, int threads) {
                       const int64_t first = part.first * images, some = std::min(batch - first, part.count * images);
                       relayout(out.some(part), alike ? in.some(part) : in, *moves, alike ? 0 : first, some, threads);
                     }};
  });
  m.def("max_pool", [](const Activations& out, const Activations& in, const Window& window) {
    return operation(out, in, [=](const Activations& to, const Activations& from, int threads) {
      max_pool(to, from, window, threads);
    });
  });
  m.def("average_pool", [](const Activations& out, const Activations& in, const Window& window, bool count_padding) {
    return operation(out, in, [=](const Activations& to, const Activations& from, int threads) {
      average_pool(to, from, window, count_padding, threads);
    });
  });
  m.def("global_average_pool", [](const Activations& out, const Activations& in) {
    const bool alike = same_blocks(out, in);
    return Operation{out.blocks, [=](const Part& part, int threads) {
                       global_average_pool(out.some(part), alike ? in.some(part) : in, alike ? 0 : part.first, threads);
                     }};
  });
}

}  // namespace

void define_engine(py::module_& m) {
  define_shapes(m);
  define_filters(m);
  define_operations(m);
  m.def(
      "pack_input",
      [](const Activations& out, uintptr_t in, int64_t batch, const std::array<int64_t, 4>& strides, int threads) {
        pack_input(out, floats(in), batch, strides.data(), threads);
      },
      Release());
  m.def(
      "unpack_output",
      [](uintptr_t out, const Activations& in, int64_t batch, const std::array<int64_t, 4>& strides, int threads) {
        unpack_output(floats(out), in, batch, strides.data(), threads);
      },
      Release());
  m.def(
      "channel_statistics",
      [](uintptr_t mean, uintptr_t variance, const Activations& in, int64_t batch, int threads) {
        channel_statistics(reinterpret_cast<double*>(mean), reinterpret_cast<double*>(variance), in, batch, threads);
      },
      Release());
}
