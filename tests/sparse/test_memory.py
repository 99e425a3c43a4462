"""What a sparse network holds: in proportion to what remains, whatever it was called with."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import lpk
from lpk import models, sparse
from lpk.sparse.module import SHAPES
from lpk.sparse.runs import RECENT
from tests.sparse.networks import pruned


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
    for batch in (*range(1, 17), 32, 48):  # a plan for each batch of less than a whole block
        made(torch.randn(batch, 3, 16, 16))
    before = memory()
    outputs = [made(torch.randn(batch, 3, 16, 16)) for batch in range(17, 64)]
    assert memory() - before < 100_000 and len(outputs) == 47


def test_memory_does_not_grow_with_the_sizes_of_batches_whose_samples_mix():
    mixing = nn.BatchNorm2d(8, track_running_stats=False)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), mixing, nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    made = sparse.sparsify(network)
    for batch in range(17, 17 + 16 * 2 * RECENT, 16):
        inputs = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    (planned,) = made._networks.values()
    layout = planned._layouts[16]
    assert len(layout.runs) == len(layout.memory) == RECENT and max(layout.runs)[0] == batch


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
