// The extension module lpk._plain: lpk.ops.direct's look at tensors, in a twentieth of the time that Python takes for it, and new
// ones beside them.
// It knows PyTorch's C++ classes, which differ from version to version, so it is used with the version alone that it was
// compiled for (LPK_TORCH_VERSION); without it everything works as well.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/profiler/api.h>

#include <cstdlib>

namespace py = pybind11;

namespace {

using c10::DispatchKey;

// As in lpk/ops/memory.py: what a dense tensor with memory of its own has, and nothing else.
const c10::DispatchKeySet kPlain{DispatchKey::CPU,          DispatchKey::CUDA,        DispatchKey::ADInplaceOrView,
                                 DispatchKey::AutogradCPU,  DispatchKey::AutogradCUDA, DispatchKey::AutocastCPU,
                                 DispatchKey::AutocastCUDA};

// Whether a mode, a profiler or a tracer wants to see what is done to tensors.
bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::stack_len() > 0 || at::impl::PythonTorchFunctionTLS::stack_len() > 0 ||
         torch::profiler::impl::profilerEnabled() || torch::jit::tracer::isTracing();
}

// The tensor, if it is a dense vector in memory that holds its values, and nobody computes its gradient; or null.
const at::Tensor* plain(py::handle object) {
  if (!THPVariable_CheckExact(object.ptr())) return nullptr;  // a Tensor or a Parameter
  const at::Tensor& x = THPVariable_Unpack(object.ptr());
  if (x.key_set().raw_repr() & ~kPlain.raw_repr()) return nullptr;
  if (!x.is_contiguous() || (x.requires_grad() && c10::GradMode::is_enabled())) return nullptr;
  const auto end = size_t(x.storage_offset()) * x.itemsize() + x.nbytes();
  return end <= x.storage().nbytes() ? &x : nullptr;
}

bool is_like(const at::Tensor& x, const at::Tensor& first) {
  return x.scalar_type() == first.scalar_type() && x.dim() == 1 && x.numel() == first.numel() &&
         x.get_device() == first.get_device();
}

// Or the same.
bool are_apart(const at::Tensor& out, const at::Tensor& x) {
  const auto distance = std::abs(static_cast<const char*>(out.const_data_ptr()) - static_cast<const char*>(x.const_data_ptr()));
  return distance == 0 || size_t(distance) >= x.nbytes();
}

bool are_plain(py::handle first_object, py::handle second_object, py::handle out_object) {
  const at::Tensor* first = plain(first_object);
  if (first == nullptr || first->dim() != 1) return false;
  const auto dtype = first->scalar_type();
  if (dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16) return false;
  const at::Tensor* second = first;
  if (!second_object.is_none()) {
    second = plain(second_object);
    if (second == nullptr || !is_like(*second, *first)) return false;
  }
  if (out_object.is_none()) return true;
  const at::Tensor* out = plain(out_object);
  return out != nullptr && is_like(*out, *first) && are_apart(*out, *first) && are_apart(*out, *second);
}

// Whether a number, or a row of numbers, lies in memory on the device of a vector that was found plain.
bool is_beside(py::handle numbers_object, py::handle vector) {
  const at::Tensor* numbers = plain(numbers_object);
  return numbers != nullptr && numbers->get_device() == THPVariable_Unpack(vector.ptr()).get_device();
}

// A tensor of the given shape and dtype beside another one, uninitialized. As in PyTorch's own functions, other threads of Python
// go on while memory is sought.
py::object empty(py::handle beside, at::IntArrayRef shape, at::ScalarType dtype) {
  const auto options = THPVariable_Unpack(beside.ptr()).options().dtype(dtype);
  at::Tensor made;
  {
    const py::gil_scoped_release others;
    made = at::empty(shape, options);
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(made)));
}

py::object empty_like(py::handle vector) {
  const at::Tensor& x = THPVariable_Unpack(vector.ptr());
  return empty(vector, {x.numel()}, x.scalar_type());
}

py::object empty_mask(py::handle vector) { return empty(vector, {THPVariable_Unpack(vector.ptr()).numel()}, at::kBool); }

py::object empty_rows(py::handle vector, int64_t count) {
  const at::Tensor& x = THPVariable_Unpack(vector.ptr());
  return empty(vector, {count, x.numel()}, x.scalar_type());
}

py::tuple empty_thresholds(py::handle vector, int64_t count) {
  return py::make_tuple(empty(vector, {count}, at::kFloat), empty(vector, {count}, at::kLong));
}

py::object empty_bytes(py::handle vector, int64_t size) { return empty(vector, {size}, at::kByte); }

py::object changed(py::object out) {
  const at::Tensor& x = THPVariable_Unpack(out.ptr());
  if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
  return out;
}

// Whether these are coefficients: a list or tuple of floats in [0, 1].
bool are_coefficients(py::handle alphas) {
  PyObject* row = alphas.ptr();
  if (!PyList_CheckExact(row) && !PyTuple_CheckExact(row)) return false;
  for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(row); ++k) {
    PyObject* alpha = PySequence_Fast_GET_ITEM(row, k);
    if (!PyFloat_CheckExact(alpha)) return false;
    const double value = PyFloat_AS_DOUBLE(alpha);
    if (!(value >= 0.0 && value <= 1.0)) return false;
  }
  return true;
}

}  // namespace

PYBIND11_MODULE(_plain, m) {
  m.doc() = "lpk.ops.direct's look at tensors, compiled.";
  m.def("is_watched", &is_watched);
  m.def("are_plain", &are_plain, py::arg("first"), py::arg("second") = py::none(), py::arg("out") = py::none());
  m.def("is_beside", &is_beside, py::arg("numbers"), py::arg("vector"));
  m.def("are_coefficients", &are_coefficients);
  // These are for vectors that were found plain. Their errors are PyTorch's, which users know: OutOfMemoryError.
  m.def("empty_like", torch::wrap_pybind_function(&empty_like));
  m.def("empty_mask", torch::wrap_pybind_function(&empty_mask));
  m.def("empty_rows", torch::wrap_pybind_function(&empty_rows));
  m.def("empty_thresholds", torch::wrap_pybind_function(&empty_thresholds));
  m.def("empty_bytes", torch::wrap_pybind_function(&empty_bytes));
  m.def("changed", torch::wrap_pybind_function(&changed));
}
