"""A sparse network in inference mode, without gradients and under autocast."""

import itertools
from contextlib import nullcontext

import pytest
import torch

import lpk
from lpk import sparse
from tests.sparse.networks import Dynamic, Shared, pruned
from tests.sparse.small_network import IMAGES, expected, network

ORDERS = [(True, False, True), (False, True, False)]


@pytest.mark.parametrize("fallback", ["error", "torch"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_call_by_its_own_autocast(order, fallback):
    model = network()
    made = lpk.sparsify(model, fallback=fallback)
    for autocast in order:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            outputs, wanted = made(IMAGES), expected(model, IMAGES)
        assert outputs.dtype == wanted.dtype == (torch.bfloat16 if autocast else torch.float32)
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-5)
    (kept,) = made._networks.values()
    assert kept is not None and len(kept.plan.foreign) == 1  # the engine runs all but softplus


def test_in_inference_mode(network):
    inputs = torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        made = sparse.sparsify(pruned(network, 0.3))
        expected = network(inputs)
        torch.testing.assert_close(made(inputs), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made(inputs[:2]), expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(inputs[:3]), expected[:3].clone(), rtol=1e-4, atol=1e-5)


MODES = (torch.no_grad, torch.inference_mode)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("modes", list(itertools.product(MODES, repeat=3)))
def test_in_every_mode(modes, traced, tmp_path):
    """Made, called and called again in one mode or the other, whatever reads the weights."""
    network = Shared().eval() if traced else Dynamic().eval()
    for parameter in network.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    inputs = torch.rand(4, 3, 6, 5) if traced else torch.rand(4, 1, 6, 6)
    with torch.no_grad():
        expected = network(inputs)
    first, second, third = modes
    with first():
        made = lpk.sparsify(network, fallback="torch")
    for mode, count in ((second, 4), (third, 2)):
        with mode():
            torch.testing.assert_close(made(inputs[:count]), expected[:count], rtol=1e-4, atol=1e-5)
            made.save(tmp_path / "network.safetensors")
        read = sparse.load_sparse(tmp_path / "network.safetensors")[0]
        assert all(torch.equal(read[name], value) for name, value in network.state_dict().items())
