"""The engine computes what PyTorch computes, for whole networks and batches of all sizes."""

import pytest
import torch
import torchvision

from lpk import models, sparse
from tests.sparse.engine import configured
from tests.sparse.networks import pruned, same


@pytest.mark.parametrize(("density", "batch"), [(1.0, 16), (0.2, 5), (0.2, 1), (0.02, 20)])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "small-resnet", "imagenet-resnet18", "mlp"])
def test_networks_by_name(name, density, batch):
    torch.manual_seed(0)
    shape = (3, 64, 64) if name.startswith("imagenet") else (3, 32, 32)
    same(pruned(models.build(name, classes=10, shape=shape), density), torch.randn(batch, *shape))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name, batch):
    torch.manual_seed(0)
    network = pruned(getattr(torchvision.models, name)(num_classes=10), 0.3)
    same(network, torch.randn(batch, 3, 75, 56))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 8, 9, 15, 16, 17, 40, 100])
def test_batch_sizes(batch):
    torch.manual_seed(0)
    network = pruned(models.build("small-resnet", classes=10, shape=(1, 12, 10)), 0.3)
    same(network, torch.randn(batch, 1, 12, 10))


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9, 16, 17, 33])
def test_the_same_bits_for_any_number_of_threads(batch):
    """Which changes between calls of one network: blocks are left over for some, and memory is by thread."""
    torch.manual_seed(0)
    network = sparse.sparsify(pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3))
    inputs, outputs = torch.randn(batch, 3, 16, 16), []
    for threads in (1, 2, 3, 5, 2):
        with configured(threads=threads):
            outputs.append(network(inputs))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_channels_last_inputs():
    torch.manual_seed(0)
    network = pruned(models.build("small-resnet", classes=10, shape=(3, 16, 16)), 0.3)
    inputs = torch.randn(5, 3, 16, 16)
    made = sparse.sparsify(network)
    assert torch.equal(made(inputs), made(inputs.contiguous(memory_format=torch.channels_last)))
