// The extension module lpk._plain: lpk.ops.direct's look at tensors, in a twentieth of the time that Python takes for it.
// It knows PyTorch's C++ classes, which differ from version to version, so it is used with the version alone that it was
// compiled for (LPK_TORCH_VERSION); without it everything works as well.
#include <c10/core/GradMode.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdlib>

namespace py = pybind11;

namespace {

using c10::DispatchKey;

// As in lpk/ops/memory.py: what a dense tensor with memory of its own has, and nothing else.
const c10::DispatchKeySet kPlain{DispatchKey::CPU,          DispatchKey::CUDA,        DispatchKey::ADInplaceOrView,
                                 DispatchKey::AutogradCPU,  DispatchKey::AutogradCUDA, DispatchKey::AutocastCPU,
                                 DispatchKey::AutocastCUDA};

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

}  // namespace

PYBIND11_MODULE(_plain, m) {
  m.doc() = "lpk.ops.direct's look at tensors, compiled.";
  m.def("are_plain", &are_plain, py::arg("first"), py::arg("second") = py::none(), py::arg("out") = py::none());
  m.def("is_beside", &is_beside, py::arg("numbers"), py::arg("vector"));
}
