"""What native code is given the address of: dense tensors with values; all others are an error that names them."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from lpk import ops
from lpk.ops import memory
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import Blocks, empty_blocks

N = 64


class Wrapper(torch.Tensor):
    """Without memory: what it stands for lies elsewhere."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise TypeError(f"{function} of a Wrapper")


class Named(torch.Tensor):
    """With memory as any other."""


def fake(x):
    with FakeTensorMode():
        return torch.randn(x.shape)


def freed(x, held=0):
    x = x.clone()
    x.untyped_storage().resize_(held)
    return x


def inference(x):
    with torch.inference_mode():
        return x.clone()


WITHOUT_VALUES = {
    "FakeTensor": fake,
    "Wrapper": Wrapper,
    "on meta": lambda x: x.to("meta"),
    "sparse_coo": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[0]]),
    "0 bytes": freed,
    "100 bytes": lambda x: freed(x, 100),
    "quint8": lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8),
    "lazy": lambda x: torch._efficientzerotensor(x.shape),
}
ignore = pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes of PyTorch's


@ignore
@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_there_is_no_address_of_what_has_no_values(kind):
    with pytest.raises(TypeError, match=f"it is .*{kind}.*; a dense tensor"):
        memory.address("it", WITHOUT_VALUES[kind](torch.randn(2, N)))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 4),
        torch.randn(3, 4)[1:, ::2],
        torch.randn(5)[5:],
        torch.empty(0, 3),
        torch.randn(3).expand(4, 3),
        torch.nn.Parameter(torch.randn(3)),
        torch.randn(3).as_subclass(Named),
        inference(torch.randn(3)),
        torch.ones(3, dtype=torch.bool),
    ],
)
def test_there_is_one_of_all_others(x):
    assert memory.address("x", x) == x.data_ptr()
    assert memory.address("x", None) == 0


def test_inside_torch_func():
    for transform in (torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())):
        with pytest.raises(TypeError, match=r"it is inside torch\.func"):
            transform(lambda x: x * memory.address("it", x))(torch.randn(3))


A, B = torch.randn(2, N)
PACKED = ops.pack(A, B)
OPERATIONS = {
    "interpolate": lambda x: ops.interpolate(x, B, 0.5),
    "interpolate to": lambda x: ops.interpolate(B, A, 0.5, out=x),
    "interpolate_threshold": lambda x: ops.interpolate_threshold(B, x, [0.5], 9),
    "interpolate_prune": lambda x: ops.interpolate_prune(x, B, 0.5, 9),
    "interpolate_prune_all": lambda x: ops.interpolate_prune_all(x, B, [0.5, 0.2], 9),
    "pack": lambda x: ops.pack(x, B),
    "interpolate_prune_packed": lambda x: ops.interpolate_prune_packed(PACKED._replace(a=x), 0.5, 9),
    "magnitude_prune": lambda x: ops.magnitude_prune(x, 9),
    "magnitude_prune to": lambda x: ops.magnitude_prune(B, 9, out=x),
    "magnitude_mask": lambda x: ops.magnitude_mask(x, 9),
}


def parts(result):
    return [part for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, torch.Tensor)]


@ignore
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_refuse_what_has_no_values(operation):
    """In the tensor's name where lpk sees it, by PyTorch's dispatcher where it stops it: never without a word."""
    for kind, make in WITHOUT_VALUES.items():
        if kind in ("FakeTensor", "on meta") and "magnitude" in operation:
            continue  # all there is are shapes, which is what they return: that is how a graph is traced
        x = make(A[None].expand(2, -1).clone() if kind == "nested" else A)
        with pytest.raises((TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError)) as raised:
            OPERATIONS[operation](x)
        if kind in ("nested", "sparse_coo", "mkldnn", "0 bytes", "100 bytes"):
            assert raised.type is TypeError and "dense tensor" in str(raised.value), kind


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_resolve_lazy_views(operation):
    lazy = torch._neg_view(-A)
    if operation.endswith("to"):
        with pytest.raises(ValueError, match="out is a lazy view"):
            OPERATIONS[operation](lazy)
        return
    for ours, expected in zip(parts(OPERATIONS[operation](lazy)), parts(OPERATIONS[operation](A)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_have_no_forward_gradients_either(operation):
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="requires a gradient"):
        OPERATIONS[operation](forward_ad.make_dual(A.clone(), B))


def test_numbers_have_values():
    for alpha in (torch.tensor(0.5, device="meta"), torch.empty(1, device="meta")):
        with pytest.raises(ValueError, match="alpha is on meta"):
            ops.interpolate(A, B, alpha)
    threshold = torch.empty(1, device="meta"), torch.empty(1, device="meta")
    with pytest.raises(ValueError, match="threshold is on meta"):
        ops.interpolate_prune(A, B, 0.5, 9, threshold=threshold)


@pytest.mark.parametrize("default", ["dtype", "device"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_do_not_depend_on_defaults(operation, default):
    expected = parts(OPERATIONS[operation](A.clone()))
    try:
        torch.set_default_dtype(torch.float64 if default == "dtype" else torch.float32)
        torch.set_default_device("meta" if default == "device" else None)
        result = parts(OPERATIONS[operation](A.clone()))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(map(torch.equal, result, expected))


PACK = (
    packing.pack_filters,
    packing.pack_dense_filters,
    lambda weight, convolution, x: packing.pack_winograd_filters(weight, convolution, x),
)
CONVOLUTION = packing.Convolution(4, 3, (3, 3), padding=(1, 1))


@ignore
@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_the_engine_refuses_what_has_no_values(kind):
    make = WITHOUT_VALUES[kind]
    x, out = empty_blocks(2, 3, 6, 6, 1), empty_blocks(2, 4, 6, 6)
    filters = packing.pack_filters(torch.randn(4, 3, 3, 3), CONVOLUTION, x)
    calls = [
        lambda: kernels.pack_input(make(torch.randn(2, 3, 6, 6)), x),
        lambda: Blocks(make(torch.zeros(x.data.shape)), 2, 1),
    ]
    if kind != "lazy":  # of which a copy has the values
        calls += [lambda pack=pack: pack(make(torch.randn(4, 3, 3, 3)), CONVOLUTION, x) for pack in PACK]
    if kind not in ("nested", "lazy", "100 bytes"):  # it has one dimension, and is small
        calls.append(lambda: kernels.convolution(filters, x, out, bias=make(torch.randn(4))))
    for call in calls:
        with pytest.raises((TypeError, ValueError, NotImplementedError, RuntimeError)):
            call()


def test_the_engine_resolves_lazy_views():
    def outputs(x, weight, bias):
        blocks, out = kernels.pack_input(x, empty_blocks(2, 3, 6, 6, 1)), empty_blocks(2, 4, 6, 6)
        return [
            kernels.unpack_output(kernels.convolution(pack(weight, CONVOLUTION, blocks), blocks, out, bias=bias))
            for pack in PACK
        ]

    tensors = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    lazy = (torch._neg_view(-x) for x in tensors)
    assert all(map(torch.equal, outputs(*lazy), outputs(*tensors)))


def test_an_operation_holds_what_it_reads():
    """In memory of its own, whatever becomes of what it was given: moved, freed and written again, for instance."""
    x, out = empty_blocks(2, 4, 6, 6), empty_blocks(2, 4, 6, 6)
    shift = torch.randn(4)
    operation, expected = kernels.prepare_scale_shift(x, out, shift=shift), shift.clone()
    shift.fill_(1e30)
    shift.share_memory_()
    kernels.run([operation])
    assert torch.equal(kernels.unpack_output(out)[1, :, 2, 3], expected)
