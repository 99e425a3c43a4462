"""What PyTorch runs, all of it or in parts: fallback="torch", forward hooks, weights that both read."""

import pytest
import torch
from torch import nn

import lpk
from lpk import sparse
from tests.sparse.networks import Dynamic, Shared, Zoo, pruned


def test_weights_that_pytorch_reads_stay():
    network = Shared().eval()
    for parameter in network.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    made = sparse.sparsify(network)
    for batch in (2, 2, 5, 2):
        inputs = torch.randn(batch, 3, 6, 5)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)


def test_what_can_not_be_traced_is_an_error_or_runs_in_torch():
    network, inputs = Dynamic().eval(), torch.randn(3, 1, 6, 6)
    with pytest.raises(ValueError, match="Dynamic can't be traced"):
        lpk.sparsify(network)(inputs)
    with torch.no_grad():
        assert torch.equal(lpk.sparsify(network, fallback="torch")(inputs), network(inputs))
        network = pruned(network, 0.3)
        made = lpk.sparsify(network, fallback="torch")
        for part in (inputs, inputs, inputs[:2], inputs):
            assert torch.equal(made(part), network(part))


def test_what_is_no_tensor_is_returned_by_torch():
    def forward(m, x):
        return {"out": m.conv(x) if x.sum() < 1e9 else x, "aux": (m.conv(x), x.shape)}  # torch.fx can't trace it

    network, inputs = Zoo(forward).eval(), torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        expected = network(inputs)
    returned = lpk.sparsify(network, fallback="torch")(inputs)
    assert torch.equal(returned["out"], expected["out"]) and returned["aux"][1] == inputs.shape
    assert not returned["out"].is_inference() and not returned["out"].requires_grad


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize(("path", "name"), [("", "Sequential"), ("1", "1"), ("1.0", "1.0")])
def test_forward_hooks_are_an_error_or_run_in_torch(path, name, register):
    def halve(module, *values):
        return values[-1] / 2 if torch.is_tensor(values[-1]) else values[-1][0] / 2

    network = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 2), nn.ReLU())).eval()
    inputs = torch.randn(3, 6)
    getattr(network.get_submodule(path), register)(halve)
    with pytest.raises(sparse.NotSupported, match=f"{name} has the forward hook .*halve"):
        lpk.sparsify(network)(inputs)
    with torch.no_grad():
        assert torch.equal(lpk.sparsify(network, fallback="torch")(inputs), network(inputs))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_forward_hooks_are_an_error_or_run_in_torch_while_they_are_there(register):
    def halve_linear(module, *values):
        if isinstance(module, nn.Linear):
            return values[-1] / 2 if torch.is_tensor(values[-1]) else values[-1][0] / 2

    network = pruned(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 0.5).eval()
    inputs = torch.randn(3, 6)
    strict, made = lpk.sparsify(network), lpk.sparsify(network, fallback="torch")
    with torch.no_grad():
        expected = network(inputs)
        torch.testing.assert_close(made(inputs), expected)
        handle = getattr(nn.modules.module, register)(halve_linear)
        try:
            assert torch.equal(made(inputs), network(inputs)) and not torch.allclose(network(inputs), expected)
            with pytest.raises(sparse.NotSupported, match=r"has the forward hook \S+halve_linear, a global one"):
                strict(inputs)
        finally:
            handle.remove()
        for each in (strict, made):
            torch.testing.assert_close(each(inputs), expected)


def test_weights_stay_where_pytorch_evaluates_inputs_of_another_shape():
    network = pruned(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), 0.5)
    made = lpk.sparsify(network, fallback="torch")
    for shape in ((3, 6), (3, 4, 6), (3, 4, 6), (3, 6), (2, 6), (3, 4, 6)):  # the engine does not know [batch, 4, 6]
        inputs = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)
