"""What lpk.sparsify makes: its values, memory, copies and files, in every mode, from several threads."""

import copy
import gc
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lpk
from lpk import models, sparse
from lpk.sparse.module import SHAPES
from lpk.sparse.runs import RECENT
from lpk.tickets import files
from tests.conftest import make_network
from tests.sparse.test_network import Zoo, pruned


def test_a_ticket_a_pooled_network_and_a_state_dict(tickets, network, validation, tmp_path):
    images, _ = validation
    pooled = lpk.pool(tickets, 3, model=network, validation=validation, statistics="leave", progress=False)
    for ticket in (tickets[3], tickets[3].state_dict, pooled):
        network.load_state_dict(getattr(ticket, "state_dict", ticket))
        with torch.no_grad():
            expected = network.eval()(images)
        torch.testing.assert_close(lpk.sparsify(make_network(), ticket)(images), expected, rtol=1e-4, atol=1e-5)
    pooled.save(tmp_path / "pooled.safetensors")
    for path in (tmp_path / "pooled.safetensors", str(tmp_path / "pooled.safetensors")):
        torch.testing.assert_close(lpk.sparsify(make_network(1), path)(images), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_copied(network):
    made = lpk.sparsify(network)
    before = made(torch.ones(1, 1, 6, 6))
    network[0].weight.data.zero_()
    assert torch.equal(made(torch.ones(1, 1, 6, 6)), before)


def test_saved_and_read_again(tickets, network, validation, tmp_path):
    images, _ = validation
    ticket = tickets[3]
    mask = ticket.mask.clone()
    mask[0] = True  # with a weight that remains although it is zero
    ticket = type(ticket)(3, ticket.layout, ticket.flat, mask)
    made = lpk.sparsify(network, ticket)
    made.save(tmp_path / "before")
    expected = made(images)
    made.save(str(tmp_path / "after"))
    assert torch.equal(made(images), expected)
    for path in (tmp_path / "before", str(tmp_path / "after")):
        state, masks = sparse.load_sparse(path)
        assert list(state) == list(ticket.state_dict) and list(masks) == list(ticket.masks)
        assert all(torch.equal(state[name], tensor) for name, tensor in ticket.state_dict.items())
        assert all(torch.equal(masks[name], tensor) for name, tensor in ticket.masks.items())
        assert torch.equal(lpk.sparsify(make_network(1), path)(images), expected)


def test_a_model_of_its_own_is_saved_with_the_zeros_it_has(tmp_path):
    network = pruned(make_network(), 0.3)
    sparse.sparsify(network).save(tmp_path / "net")
    state, masks = sparse.load_sparse(tmp_path / "net")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(
        int(network[i].weight.count_nonzero()) for i in (0, 3)
    )


def memory():
    """Of all tensors that are there, in bytes."""
    gc.collect()
    return uncollected_memory()


def uncollected_memory():
    kinds = torch.Tensor, nn.Parameter
    tensors = [x for x in gc.get_objects() if type(x) in kinds and x.layout == torch.strided]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("density", [0.1, 0.02])
def test_memory_is_in_proportion_to_what_remains(density):
    network = pruned(
        nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.Linear(1000, 2)), density
    )
    inputs, dense = torch.randn(16, 1000), 4 * 2_000_000
    before = memory()
    made = sparse.sparsify(network)
    outputs = [made(inputs), made(inputs[:3])]
    assert memory() - before < 4 * density * dense + 500_000  # values, where they are, both packed; activations
    with torch.no_grad():
        torch.testing.assert_close(outputs[1], network(inputs[:3]), rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_shapes_of_inputs():
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made, held = sparse.sparsify(network), []
    gc.collect()
    gc.disable()
    try:
        for i in range(2 * SHAPES):
            inputs = torch.randn(3, 3, 16 + i, 32 - i)
            with torch.no_grad():
                torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)
            held.append(uncollected_memory())
    finally:
        gc.enable()
    assert held[-1] < 1.2 * held[SHAPES - 1]


def test_memory_does_not_grow_with_the_sizes_of_batches():
    made = sparse.sparsify(models.build("small-resnet", classes=10, shape=(3, 16, 16)))
    made(torch.randn(16, 3, 16, 16))
    before = memory()
    outputs = [made(torch.randn(batch, 3, 16, 16)) for batch in range(9, 16)]
    assert memory() - before < 100_000 and len(outputs) == 7


def test_memory_does_not_grow_with_the_sizes_of_batches_whose_samples_mix():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()).eval()
    made = sparse.sparsify(network)
    for batch in range(17, 17 + 16 * 2 * RECENT, 16):
        inputs = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    (planned,) = made._networks.values()
    layout = planned._layouts[1]
    assert len(layout.runs) == len(layout.memory) == RECENT and max(layout.runs) == batch


def test_shapes_and_batches_that_come_later():
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made = sparse.sparsify(network)
    for shape in ((4, 3, 16, 16), (2, 3, 16, 16), (4, 3, 20, 12), (4, 3, 16, 16), (30, 3, 20, 12)):
        inputs = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_in_inference_mode(network):
    inputs = torch.randn(4, 1, 6, 6)
    with torch.inference_mode():
        made = sparse.sparsify(pruned(network, 0.3))
        expected = network(inputs)
        torch.testing.assert_close(made(inputs), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made(inputs[:2]), expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(inputs[:3]), expected[:3].clone(), rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """Its weights are read by the engine and by PyTorch, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.reflecting = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.tied = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.tied.weight = self.conv.weight
        self.linear = nn.Linear(5, 5)

    def forward(self, x):
        x = F.conv2d(self.conv(x), self.reflecting.weight, padding=1)
        return F.linear(self.linear(self.tied(self.reflecting(x))), self.linear.weight)


def test_weights_that_pytorch_reads_stay():
    network = Shared().eval()
    for parameter in network.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.5
    made = sparse.sparsify(network)
    for batch in (2, 2, 5, 2):
        inputs = torch.randn(batch, 3, 6, 5)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-5)


class Dynamic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = make_network()

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


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


def test_dropout_that_is_not_told_otherwise_drops():
    made = lpk.sparsify(Zoo(lambda m, x: F.dropout(m.conv(x), 0.5)))
    assert 0.4 < float((made(torch.randn(20, 3, 8, 8)) == 0).float().mean()) < 0.6


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


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 12, 20)])
def test_called_from_several_threads(shape):
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    made, inputs = sparse.sparsify(network), torch.randn(8, 2, *shape)
    with torch.no_grad():
        expected = [network(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(made, inputs.repeat(25, 1, 1, 1, 1)))
    for i, output in enumerate(outputs):
        torch.testing.assert_close(output, expected[i % 8], rtol=1e-4, atol=1e-4)


def test_networks_are_traced_in_several_threads():
    """torch.fx replaces nn.Module.__call__ meanwhile, in the whole process."""
    inputs = torch.randn(2, 3, 6, 5)
    networks = [Shared().eval() for _ in range(24)]
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        outputs = list(threads.map(lambda network: lpk.sparsify(network)(inputs), networks))
        for network, output in zip(networks, outputs, strict=True):
            torch.testing.assert_close(output, network(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("called", [False, True])
def test_copied(copied, called, tmp_path):
    network = pruned(nn.Sequential(nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 2)), 0.05)
    inputs = torch.randn(3, 500)
    made = lpk.sparsify(network)
    if called:
        made(inputs)
    before = memory()
    copy_of_it = copied(made)
    assert memory() - before < 0.2 * 4 * 500 * 500
    assert torch.equal(copy_of_it(inputs), made(inputs))
    copy_of_it.save(tmp_path / "network")
    state, _ = sparse.load_sparse(tmp_path / "network")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_what_a_module_keeps_of_its_forward_is_no_proxy():
    def forward(m, x):
        m.features = m.conv(x)
        return m.features.relu()

    made, inputs = lpk.sparsify(Zoo(forward)), torch.randn(3, 3, 6, 6)
    expected = made(inputs)
    assert not hasattr(made._model[0], "features")
    assert torch.equal(copy.deepcopy(made)(inputs), expected)


def test_bad_input_is_named(network, tmp_path):
    made = lpk.sparsify(network)
    with pytest.raises(RuntimeError, match="require a gradient"):
        made(torch.ones(1, 1, 6, 6, requires_grad=True))
    with pytest.raises(TypeError, match="float64 on cpu"):
        made(torch.ones(1, 1, 6, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"0\.weight is torch\.float16"):
        lpk.sparsify(network.half())
    with pytest.raises(TypeError, match="of type ndarray"):
        made(torch.ones(1, 1, 6, 6).numpy())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lpk.sparsify(make_network(), "nowhere")
    with pytest.raises(files.FileDamaged, match="is a directory"):
        lpk.sparsify(make_network(), tmp_path)
    with pytest.raises(ValueError, match="fallback is 'none'"):
        lpk.sparsify(make_network(), fallback="none")
    with pytest.raises(ValueError, match="can't be traced"):
        made(torch.ones(1, 2, 6, 6))
