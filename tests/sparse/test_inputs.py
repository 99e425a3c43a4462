"""What a sparse network is called with: inputs of every kind."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import lpk
from lpk.sparse.steps import Convolve
from tests.sparse.small_network import IMAGES, check, expected, network, sparsened


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(7, 6), nn.Linear(6, 2)

    def forward(self, tokens, mask=None, *, scale=1.0, other=None):
        x = self.embedding(tokens.long()).mean(1) if not tokens.is_floating_point() else tokens
        x = x if mask is None else x * mask["keep"]
        return self.linear(x) * scale + (0 if other is None else other[0])


TOKENS = torch.randint(0, 7, (3, 5))
MASK = {"keep": torch.rand(3, 6)}
ARGUMENTS = [
    ((TOKENS,), {}),
    ((TOKENS.to(torch.uint8),), {}),
    ((TOKENS, MASK), {}),
    ((TOKENS,), {"scale": 2.0, "other": (torch.ones(2),)}),
    ((), {"tokens": TOKENS, "mask": MASK}),
    ((MASK["keep"],), {"mask": MASK}),
    ((torch.rand(3, 6), {"keep": torch.rand(3, 6, dtype=torch.float32)}), {"other": torch.ones(1, 2)}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_arguments_of_every_kind(args, kwargs):
    model = sparsened(Tokens())
    made = lpk.sparsify(model)
    for _ in range(2):
        torch.testing.assert_close(made(*args, **kwargs), expected(model, *args, **kwargs))
    (network,) = made._networks.values()
    assert any(isinstance(step, Convolve) for step in network.plan.steps)


def test_arguments_that_are_no_tensors_are_part_of_the_plan():
    model = sparsened(Tokens())
    made = lpk.sparsify(model)
    for scale in (2.0, 3.0, 2.0, 2):
        torch.testing.assert_close(made(TOKENS, scale=scale), expected(model, TOKENS, scale=scale))
    assert len(made._networks) == 3


def test_arguments_that_may_change_are_no_part_of_a_plan():
    model = sparsened(Tokens())
    scale = np.ones(2, dtype=np.float32)
    made, patient = lpk.sparsify(model), lpk.sparsify(model, fallback="torch")
    for _ in range(2):
        made(TOKENS, scale=2.0)
        with pytest.raises(TypeError, match="an argument is of type ndarray, which may change"):
            made(TOKENS, scale=scale)
        torch.testing.assert_close(patient(TOKENS, scale=scale), expected(model, TOKENS, scale=scale))
        scale += 1


def test_pytorch_takes_what_the_engine_does_not():
    model = sparsened(Tokens()).double()
    made, inputs = lpk.sparsify(model, fallback="torch"), torch.rand(3, 6, dtype=torch.float64)
    assert torch.equal(made(inputs), expected(model, inputs))
    with pytest.raises(TypeError, match='with fallback="torch", sparsify leaves it to PyTorch'):
        lpk.sparsify(sparsened(Tokens()))(inputs)


def test_inputs_by_their_name():
    model = network()
    made = lpk.sparsify(model)
    torch.testing.assert_close(made(input=IMAGES), expected(model, IMAGES))
    with pytest.raises(TypeError, match=r"Sequential.forward: missing a required argument: 'input'"):
        made(images=IMAGES)
    with pytest.raises(TypeError, match="missing a required argument"):
        made()


@pytest.mark.parametrize("fallback", ["error", "torch"])
def test_gradients_are_an_error_wherever_they_are(fallback):
    made = lpk.sparsify(sparsened(Tokens()), fallback=fallback)
    wanted = torch.rand(3, 6, requires_grad=True)
    for args, kwargs in (((wanted,), {}), ((TOKENS, {"keep": wanted}), {}), ((TOKENS,), {"other": [wanted]})):
        with pytest.raises(RuntimeError, match="require a gradient"):
            made(*args, **kwargs)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="require a gradient"):
        made(forward_ad.make_dual(wanted.detach(), torch.ones(3, 6)))


def test_a_lazy_view():
    model = network()
    lazy = torch.complex(torch.zeros_like(IMAGES), -IMAGES).conj().imag
    assert lazy.is_neg()
    check(lpk.sparsify(model), model, lazy)
    state = {name: torch._neg_view(-value) for name, value in model.state_dict().items()}
    check(lpk.sparsify(network(1), state), model)
    for parameter in model.parameters():
        parameter.data = torch._neg_view(-parameter.data)
    check(lpk.sparsify(model), model)


class Named(torch.Tensor):
    pass


def test_a_subclass_with_values_is_a_tensor():
    model = network()
    made = lpk.sparsify(model)
    assert type(made(IMAGES.as_subclass(Named))) is torch.Tensor
    check(made, model, IMAGES.as_subclass(Named))
    check(made, model, nn.Parameter(IMAGES, requires_grad=False))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: FakeTensorMode().from_tensor(x), "a FakeTensor"),
        (lambda x: x.to("meta"), "on meta"),
        (lambda x: x.to_sparse(), "stored as torch.sparse_coo"),
        (lambda x: x.to_mkldnn(), "stored as torch._mkldnn"),
        (lambda x: torch.nested.nested_tensor(list(x)), "a nested tensor"),
        (lambda x: torch._efficientzerotensor(x.shape), "a lazy view"),
    ],
)
def test_inputs_without_values(make, kind):
    made = lpk.sparsify(network())
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"inputs are .*{kind}.* is needed; with fallback"):
            made(make(IMAGES))
        made(IMAGES)


def test_inputs_whose_memory_was_freed():
    inputs = IMAGES.clone()
    inputs.untyped_storage().resize_(16)
    with pytest.raises(TypeError, match="its storage was resized to 16 bytes"):
        lpk.sparsify(network(), fallback="error")(inputs)


def test_torch_func():
    model = network()
    with pytest.raises(TypeError, match=r"inside torch\.func"):
        torch.vmap(lpk.sparsify(model))(IMAGES[:, None])
    outputs = torch.vmap(lpk.sparsify(model, fallback="torch"))(IMAGES[:, None])
    torch.testing.assert_close(outputs[:, 0], expected(model, IMAGES), rtol=1e-4, atol=1e-5)
