"""What networks are taken to cost: work by shapes, times by work."""

import itertools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lpk.networks.tracing import trace
from lpk.sparse.costs import BATCH, ENGINE, PYTORCH, engine_seconds, network_seconds, work_of
from lpk.sparse.costs import pytorch_seconds as seconds
from lpk.sparse.results import Results, tensors


class Calls(nn.Module):
    def __init__(self, forward, *layers):
        super().__init__()
        self.layers, self.body = nn.ModuleList(layers), forward
        self.weight = nn.Parameter(torch.zeros(4, 8, 1, 1))

    def forward(self, x):
        return self.body(self, x)


def graph_of(model, *shape):
    graph = trace(model.eval().to("meta"))
    with torch.no_grad():
        Results(graph).run(torch.empty(BATCH, *shape, device="meta"))
    return graph


def work(forward, shape, *layers, batch=BATCH):
    """What the last node does that is computed."""
    graph = graph_of(Calls(forward, *layers), *shape)
    node = list(graph.graph.nodes)[-2]
    inputs = [x for n in node.all_input_nodes for x in tensors(n.meta["result"])]
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    return work_of(node, node.meta["result"], inputs, module, batch)


def layer(m, x):
    return m.layers[0](x)


LAYERS = [
    (nn.Conv2d(8, 16, 3, 2, 1, bias=False), (8, 10, 10), "convolution", 25 * 16 * 72, 8 * 100 + 16 * 25, 16 * 72),
    (nn.Conv2d(8, 16, 3, groups=2, bias=False), (8, 6, 6), "convolution", 16 * 16 * 36, 8 * 36 + 16 * 16, 16 * 36),
    (nn.Conv2d(8, 8, 3, groups=8, bias=False), (8, 6, 6), "depthwise", 16 * 8 * 9, 8 * 36 + 8 * 16, 72),
    (nn.Linear(8, 5, bias=False), (7, 8), "linear", 7 * 40, 7 * 13, 40),
    (nn.LayerNorm(8, elementwise_affine=False), (7, 8), "normalisation", 56, 112, 0),
    (nn.BatchNorm2d(8, affine=False), (8, 3, 3), "normalisation", 0, 144, 0),
    (nn.ReLU(), (8, 3, 3), "elementwise", 0, 144, 0),
    (nn.Tanh(), (8, 3, 3), "elementwise", 6 * 72, 144, 0),
    (nn.MaxPool2d(2), (8, 4, 4), "other", 8 * 16, 8 * 20, 0),
]


@pytest.mark.parametrize(("module", "shape", "kind", "products", "moved", "weights"), LAYERS)
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_work_of_modules(module, shape, kind, products, moved, weights, batch):
    """For each sample: products and the elements that are moved; and the weights for all of them."""
    found = work(layer, shape, module, batch=batch)
    assert found[:3] == (kind, batch * products, 4 * (batch * moved + weights))
    assert found.groups == getattr(module, "groups", 1)


FUNCTIONS = [
    (lambda m, x: F.conv2d(x, m.weight), (8, 3, 3), "convolution", 9 * 32, 4 * (12 * 9 * 16 + 32)),
    (lambda m, x: F.linear(x, m.weight.view(4, 8)), (7, 8), "linear", 7 * 32, None),
    (lambda m, x: x @ x.transpose(1, 2), (7, 8), "matmul", 49 * 8, 4 * 16 * (2 * 56 + 49)),
    (lambda m, x: F.scaled_dot_product_attention(x, x[:, :3], x[:, :3]), (7, 8), "matmul", 2 * 56 * 3, None),
    (lambda m, x: x.softmax(-1), (7, 8), "normalisation", 0.6 * 56, 4 * 16 * 112),
    (lambda m, x: F.gelu(x), (7, 8), "elementwise", 56, 4 * 16 * 112),
    (lambda m, x: x + x.relu(), (7, 8), "elementwise", 0, 4 * 16 * 168),
    (lambda m, x: torch.cat((x, x.relu()), 1), (7, 8), "copy", 0, 4 * 16 * 224),
    (lambda m, x: x.transpose(1, 2).contiguous(), (7, 8), "copy", 56, 4 * 16 * 112),
    (lambda m, x: x.transpose(1, 2).reshape(BATCH, 56), (7, 8), "copy", 56, 4 * 16 * 112),
    (lambda m, x: x.reshape(x.shape[0], 56), (7, 8), "view", 0, 0),
    (lambda m, x: x.permute(0, 2, 1), (7, 8), "view", 0, 0),
    (lambda m, x: x.contiguous(), (7, 8), "view", 0, 0),
    (lambda m, x: x.shape[0], (7, 8), "view", 0, 0),
    (lambda m, x: x.cumsum(1), (7, 8), "other", 0, 4 * 16 * 112),
]


@pytest.mark.parametrize(("forward", "shape", "kind", "products", "moved"), FUNCTIONS)
def test_work_of_functions(forward, shape, kind, products, moved):
    found = work(forward, shape, batch=16)
    assert found.kind == kind and found.products == pytest.approx(16 * products)
    assert moved is None or found.bytes == moved


def test_more_work_takes_longer():
    for kind, other in [*itertools.product(PYTORCH, [seconds]), *itertools.product(ENGINE, [engine_seconds])]:
        times = [other(kind, products=10**p, bytes=10**b) for p, b in ((0, 0), (0, 5), (5, 5), (7, 7), (9, 9))]
        assert times == sorted(times) and times[0] > 0
    dense = seconds("convolution", products=10**8, bytes=10**6)
    assert dense < seconds("convolution", products=10**8, bytes=10**6, groups=2) * 1.2


# Milliseconds that were measured once, of one image and of 16, on one thread.
MEASURED = {
    "resnet50": (88.3, 1361.0),
    "efficientnet_b0": (19.9, 279.7),
    "vit_b_16": (389.6, 5773.0),
    "mobilenet_v3_large": (11.8, 129.6),
    "densenet121": (70.8, 1100.0),
}


@pytest.mark.parametrize("name", MEASURED)
def test_networks_take_what_was_measured(name):
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    graph = graph_of(network, 3, 224, 224)
    for batch, milliseconds in zip((1, 16), MEASURED[name], strict=True):
        assert network_seconds(graph, batch) == pytest.approx(1e-3 * milliseconds, rel=0.2)


def test_where_a_layer_is_faster():
    """As measured: a dense 3 x 3 layer takes about as long on the engine, one of which a tenth is left much less, if
    PyTorch does not have to be given its input and its output."""
    products, moved = 64 * 64 * 9 * 56 * 56, 2 * 4 * 64 * 56 * 56
    in_pytorch = seconds("convolution", products=products, bytes=moved)
    dense = engine_seconds("convolution", products=products, bytes=moved)
    sparse = engine_seconds("convolution", products=0.15 * products, bytes=moved)
    packing = engine_seconds("pack", products=0, bytes=moved) + engine_seconds("unpack", products=0, bytes=moved)
    assert 0.7 < dense / in_pytorch < 1.2 and sparse + packing < 0.5 * in_pytorch
    relu = seconds("elementwise", products=0, bytes=moved)
    assert engine_seconds("elementwise", products=0, bytes=moved) < relu < packing
