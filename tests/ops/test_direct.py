"""Calls that need no checks go to their kernel at once, and do what those through PyTorch's dispatcher do."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lpk import _core, ops
from lpk.ops import direct, gpu
from lpk.ops.direct import are_plain, are_rows, are_thresholds, coefficients, is_coefficient, is_keep, is_threshold
from tests.ops.problems import every_dtype, problem, same

N, KEEP = 1025, 205
MAKERS = ("empty_like", "empty_mask", "empty_rows", "empty_thresholds", "empty_bytes", "changed")


@pytest.fixture(autouse=True, params=["compiled", "python"])
def look(request, monkeypatch):
    """At the tensors: in C++, where it was compiled for this PyTorch, and in Python. And what makes new ones."""
    if request.param == "python":
        for name in ("_is_watched", "_look", "_is_beside", "_are_coefficients"):
            monkeypatch.setattr(direct, name, getattr(direct, f"{name}_in_python"))
        for name, module in itertools.product(MAKERS, (direct, ops, gpu)):
            monkeypatch.setattr(module, name, getattr(direct, f"_{name}_in_python"), raising=False)
    elif direct._plain is None:
        pytest.skip("lpk._plain was not compiled for this PyTorch")


def test_it_is_compiled_where_it_can_be():
    assert (direct._plain is not None) == (_core.torch_version == torch.__version__)


class Watching(TorchDispatchMode):
    """Sees what goes through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def calls(p):
    pair = tuple(part[0] for part in ops.interpolate_threshold(p.a, p.b, [p.alphas[0]], KEEP))
    several = [float(alpha) for alpha in p.alphas]
    place = p.a.new_empty(len(several), N)
    rows = ops.interpolate_threshold(p.a, p.b, several, KEEP)
    return {
        "interpolate": lambda a, b: ops.interpolate(a, b, 0.3),
        "interpolate out": lambda a, b: ops.interpolate(a, b, 0.3, out=torch.full_like(a, 7)),
        "interpolate_threshold": lambda a, b: ops.interpolate_threshold(a, b, several, KEEP),
        "interpolate_prune": lambda a, b: ops.interpolate_prune(a, b, 0.3, KEEP),
        "interpolate_prune out": lambda a, b: ops.interpolate_prune(a, b, 0.3, KEEP, out=torch.full_like(a, 7)),
        "interpolate_prune given": lambda a, b: ops.interpolate_prune(a, b, several[0], KEEP, threshold=pair),
        "interpolate_prune into a": lambda a, b: ops.interpolate_prune(c := a.clone(), b, 0.3, KEEP, out=c),
        "interpolate_prune_all": lambda a, b: ops.interpolate_prune_all(a, b, several, KEEP),
        "interpolate_prune_all out": lambda a, b: ops.interpolate_prune_all(a, b, several, KEEP, out=place).clone(),
        "interpolate_prune_all given": lambda a, b: ops.interpolate_prune_all(a, b, several, KEEP, thresholds=rows),
        "magnitude_prune": lambda a, b: ops.magnitude_prune(a, KEEP),
        "magnitude_prune out": lambda a, b: ops.magnitude_prune(a, KEEP, out=torch.full_like(a, 7)),
        "magnitude_mask": lambda a, b: ops.magnitude_mask(a, KEEP),
    }


@every_dtype
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_both_ways_give_the_same_bits(dtype, kind):
    p = problem(kind, dtype, N)
    for name, call in calls(p).items():
        direct = call(p.a, p.b)
        with Watching() as watching:
            watched = call(p.a, p.b)
        assert any(seen.startswith("lpk::") for seen in watching.seen), name
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (direct, watched)), strict=True):
            assert same(one, other) if one.is_floating_point() else torch.equal(one, other), name


def test_plain_calls_do_not_reach_the_operators(monkeypatch):
    p = problem("normal", torch.float32, N)
    known = calls(p)

    class Nothing:
        def __getattr__(self, name):
            raise AssertionError(name)

    monkeypatch.setattr(torch.ops, "lpk", Nothing())
    for call in known.values():
        call(p.a, p.b)
    with pytest.raises(AssertionError), Watching():
        ops.interpolate(p.a, p.b, 0.3)


A, B = torch.randn(2, N)


class Named(torch.Tensor):
    pass


def cut_off():
    """A vector of which most of the memory is gone."""
    x = torch.randn(N)
    x.untyped_storage().resize_(16)
    return x


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda: A, True),
        (lambda: A[:0], False),
        (lambda: A.clone()[:], True),
        (lambda: torch.nn.Parameter(A, requires_grad=False), True),
        (lambda: torch.nn.Parameter(A), False),
        (lambda: A.as_subclass(Named), False),
        (lambda: A.double(), False),
        (lambda: A.half(), False),
        (lambda: A.view(1, N), False),
        (lambda: torch.randn(2 * N)[::2], False),
        (lambda: torch._neg_view(A), False),
        (lambda: torch._efficientzerotensor(N), False),
        (lambda: A.to("meta"), False),
        (cut_off, False),
        (lambda: A.to_sparse(), False),
        (lambda: A.long(), False),
        (lambda: [1.0], False),
        (lambda: None, False),
    ],
)
def test_which_vectors_are_plain(make, plain):
    x = make()
    assert are_plain(x, B) == plain
    assert x is None or are_plain(B, x) == plain


def test_an_output_may_be_an_input_and_must_not_overlap_one():
    memory = torch.zeros(N + 1)
    assert are_plain(A, B, A) and are_plain(A, B, memory[1:]) and are_plain(memory[1:], B, memory[1:])
    assert not are_plain(memory[:-1], B, memory[1:]) and not are_plain(A, memory[1:], memory[:-1])


def test_rows():
    rows, memory = torch.empty(2, N), torch.empty(3 * N)
    assert are_rows(rows, 2, A, B) and are_rows(memory[N:].view(2, N), 2, memory[:N], B)
    for out, count in (
        (rows, 3), (rows.double(), 2), (torch.empty(N, 2).t(), 2), (torch._neg_view(rows), 2), (rows.view(-1), 2),
        (rows.as_subclass(Named), 2), (rows.to("meta"), 2), (rows.clone().requires_grad_(), 2), (None, 2),
    ):  # fmt: skip
        assert not are_rows(out, count, A, B)
    assert not are_rows(memory[N:].view(2, N), 2, A, memory[N - 1 : 2 * N - 1])
    assert not are_rows(memory[: 2 * N].view(2, N), 2, memory[2 * N - 1 : 3 * N - 1], B)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit
def test_whoever_watches_is_not_left_out():
    assert are_plain(A, B)
    with TorchFunctionMode():
        assert not are_plain(A, B)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not are_plain(A, B)
    with forward_ad.dual_level():
        assert not are_plain(A, B)
    seen = []
    torch.vmap(lambda x: seen.append(are_plain(A, B)) or x)(torch.ones(2))
    assert seen == [False]
    torch.jit.trace(lambda x: seen.append(are_plain(A, B)) or x, torch.ones(2))  # it also calls without a trace
    assert seen[:2] == [False, False]
    assert are_plain(A, B)


def test_gradients_are_not_lost():
    x = A.clone().requires_grad_()
    assert not are_plain(x, B) and not are_plain(B, x)
    with torch.no_grad():
        assert are_plain(x, B)
        assert not ops.interpolate(x, B, 0.3).requires_grad
    with pytest.raises(RuntimeError, match="requires a gradient"):
        ops.interpolate(x, B, 0.3)
    scale, out = torch.ones(N, requires_grad=True), B.clone()
    product = (scale * out).sum()  # needs `out` as it is
    ops.interpolate(A, B, 0.3, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@every_dtype
def test_new_tensors(dtype):
    x = torch.nn.Parameter(torch.zeros(N, dtype=dtype))
    for made, shape, expected in (
        (direct.empty_like(x), [N], dtype),
        (direct.empty_mask(x), [N], torch.bool),
        (direct.empty_rows(x, 3), [3, N], dtype),
        (direct.empty_rows(x, 0), [0, N], dtype),
        (direct.empty_thresholds(x, 3)[0], [3], torch.float32),
        (direct.empty_thresholds(x, 3)[1], [3], torch.int64),
        (direct.empty_bytes(x, 7), [7], torch.uint8),
    ):
        assert type(made) is torch.Tensor and list(made.shape) == shape and made.dtype == expected
        assert made.is_contiguous() and made.device == x.device and not made.requires_grad
    with pytest.raises(RuntimeError, match="allocate memory"):
        direct.empty_bytes(x, 2**60)


def test_a_changed_tensor_has_another_version():
    x = torch.zeros(N)
    assert direct.changed(x) is x and x._version == 1
    with torch.inference_mode():
        unversioned = torch.zeros(N)
    assert direct.changed(unversioned) is unversioned


def test_numbers():
    for alpha, fits in ((0.0, True), (1.0, True), (1.1, False), (-0.1, False), (float("nan"), False), (1, False)):
        assert is_coefficient(alpha, A) == fits and (coefficients([0.5, alpha], A) == [0.5, alpha]) == fits
    assert not is_coefficient(torch.tensor(0.5), A)
    assert coefficients(torch.tensor([0.5, 0.25]), A) == [0.5, 0.25] and coefficients((0.5,), A) == (0.5,)
    assert coefficients((), A) == ()
    for several in (torch.tensor([1.5]), torch.tensor([[0.5]]), torch.tensor([0.5]).double(), 0.5, None):
        assert coefficients(several, A) is None
    for keep, fits in ((0, True), (N, True), (N + 1, False), (-1, False), (True, False), (2.0, False)):
        assert is_keep(keep, A) == fits
    value, last = torch.tensor(0.5), torch.tensor(3)
    assert is_threshold((value, last), A) and is_threshold((value.view(1), last), A)
    for threshold in (
        (0.5, 3), (value, 3), (last, value), (value.double(), last), (-value, last), (value * torch.nan, last),
        (value.expand(2), last), [value, last], (value,), 0.5, (torch._neg_view(value), last), (value, last.to("meta")),
        (value.clone().requires_grad_(), last),
    ):  # fmt: skip
        assert not is_threshold(threshold, A)
    rows = torch.tensor([0.5, 0.0]), torch.tensor([3, 4])
    assert are_thresholds(rows, A, 2) and not are_thresholds(rows, A, 3) and not are_thresholds(list(rows), A, 2)
    assert not are_thresholds((rows[0] - 1, rows[1]), A, 2) and not are_thresholds((rows[1], rows[0]), A, 2)
