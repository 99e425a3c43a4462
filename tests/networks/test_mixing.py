"""What depends on other samples is told by the operations, whatever the values are."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import lpk
from lpk.networks.mixing import mixes
from lpk.pooling.backends import mixes as backend_mixes
from lpk.pooling.eager import Eager


class Of(nn.Module):
    def __init__(self, forward, layer=None):
        super().__init__()
        self.body, self.layer = forward, layer
        self.weight = nn.Parameter(torch.rand(3, 1, 1))

    def forward(self, x):
        return self.body(self.layer, x)


def in_place_in_a_view(m, x):
    x = x.clone()
    x[:, :1].mul_(2)
    return x


def in_place_in_a_row(m, x):
    x = x.clone()
    x[0].mul_(2)
    return x


MIXING = {
    "softmax": lambda m, x: x.softmax(0),
    "flipped": lambda m, x: x.flip(0),
    "sorted": lambda m, x: x.sort(0)[0],
    "the largest, if it is large": lambda m, x: x / x.abs().amax().clamp(min=20),
    "nothing, if one is large": lambda m, x: torch.where(x.abs().amax() > 50, x * 0, x),
    "renorm": lambda m, x: x.renorm(2, 1, 1e9),
    "places": lambda m, x: torch.cat((x[:512], x[512:] * 2)),
    "first row": in_place_in_a_row,
    "rows of two": lambda m, x: x.reshape(2, -1).softmax(1).reshape(x.shape),
    "a number": lambda m, x: x * float(x.sum()),
    "a list": lambda m, x: torch.tensor(x.tolist()),
    "numpy": lambda m, x: torch.from_numpy(x.numpy() + 1),
    "similarities": lambda m, x: x.flatten(1) @ x.flatten(1).t(),
    "einsum": lambda m, x: torch.einsum("bchw,achw->ba", x, x),
    "attention over samples": lambda m, x: F.scaled_dot_product_attention(*[x.permute(1, 2, 0, 3)] * 3).permute(
        2, 0, 1, 3
    ),
    "selected": lambda m, x: x[x > 0],
    "all dimensions squeezed": lambda m, x: x.squeeze(),
    "statistics of the batch": (lambda m, x: m(x), nn.BatchNorm2d(3, track_running_stats=False)),
    "samples last": (lambda m, x: m(x.flatten(2))[0], nn.LSTM(64, 4)),
}
OWN = {
    "convolution": (lambda m, x: m(x).relu_(), nn.Conv2d(3, 4, 3, groups=1)),
    "statistics": (lambda m, x: m(x), nn.BatchNorm2d(3)),
    "statistics of each sample": (lambda m, x: m(x), nn.InstanceNorm2d(3)),
    "groups": (lambda m, x: m(x), nn.GroupNorm(3, 3)),
    "layer": (lambda m, x: m(x), nn.LayerNorm(8)),
    "attention": (lambda m, x: m(*[x.flatten(2)] * 3)[0], nn.MultiheadAttention(64, 4, batch_first=True)),
    "attention, samples last": (
        lambda m, x: m(*[x.flatten(2).transpose(0, 1)] * 3)[0].transpose(0, 1),
        nn.MultiheadAttention(64, 4),
    ),
    "recurrent": (lambda m, x: m(x.flatten(2))[0][:, -1], nn.LSTM(64, 4, batch_first=True)),
    "encoder": (lambda m, x: m(x.flatten(2)), nn.TransformerEncoderLayer(64, 4, 8, batch_first=True)),
    "embedding": (lambda m, x: m(x.flatten(1).argmax(1)), nn.Embedding(192, 4)),
    "transposed and back": lambda m, x: (x.transpose(0, 1) + 1).transpose(0, 1),
    "shuffled": lambda m, x: x.view(x.size(0), 3, 2, 4, 8).transpose(1, 2).reshape(x.size(0), -1, 8, 8),
    "squeeze and excitation": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "einsum": lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x),
    "upsampled": lambda m, x: F.interpolate(F.pad(x, (1, 1)), scale_factor=2, mode="bilinear"),
    "masked": lambda m, x: x.masked_fill(x < x.mean((1, 2, 3), keepdim=True), 0),
    "the largest": lambda m, x: x.flatten(1).topk(3)[0],
    "in place": in_place_in_a_view,
    "of the weight": lambda m, x: x[:, [2, 1, 0]] * torch.tensor([1.0, 2.0]).mean(),
}


def made(case):
    return Of(*(case if isinstance(case, tuple) else (case,))).eval().requires_grad_(False)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes(name):
    network = made(MIXING[name])
    assert mixes(network, network, torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("name", OWN)
def test_what_does_not(name):
    network = made(OWN[name])
    assert not mixes(network, network, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["efficientnet_b0", "shufflenet_v2_x0_5"])
def test_networks_do_not(name):
    network = getattr(torchvision.models, name)().eval()
    with torch.inference_mode():
        assert not backend_mixes(Eager(network), torch.randn(2, 3, 64, 64))


class Opaque(nn.Module):
    """A layer that nobody sees into, and that mixes samples with large values only."""

    def __init__(self, f):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.middle = nn.ReLU()
        self.middle.forward = f

    def forward(self, x):
        return self.out(self.middle(self.conv(x)))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x / x.abs().amax().clamp(min=20),
        lambda x: torch.where(x.abs().amax() > 50, x * 0, x),
        lambda x: x.renorm(2, 1, 500.0),
    ],
)
@pytest.mark.parametrize("batch", [40, 600])
def test_samples_that_mix_for_large_values_only(f, batch):
    torch.manual_seed(0)
    network, inputs = Opaque(f).eval().requires_grad_(False), 20 * torch.randn(batch, 3, 8, 8)
    inputs[-1] *= 10
    torch.testing.assert_close(lpk.sparsify(network)(inputs), network(inputs), rtol=1e-4, atol=1e-4)


class OfSize(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.conv, self.out, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), f

    def forward(self, x):
        return self.out(self.f(self.conv(x)))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * (x.size(0) > 1),
        lambda x: x * (1 + x.size(0) // 1024),
        lambda x: x * (x.size(0) != 17),
        lambda x: x.view(x.size(0), 8, -1)[:, :, : 64 - 32 * (x.size(0) // 1024)].mean(2)[:, :, None, None] + x,
        lambda x: torch.cat((x[:512], 2 * x[512:])),
        lambda x: x.reshape(-1, 8, 8, 4 + 4 * (x.size(0) % 17 != 0)).repeat(1, 1, 1, 2)[: x.size(0), :, :, :8],
    ],
)
def test_sizes_of_batches_in_arithmetic(f):
    torch.manual_seed(0)
    network = OfSize(f).eval().requires_grad_(False)
    made = lpk.sparsify(network)
    for batch in (2, 1, 17, 1100, 1, 16, 3):
        inputs = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_a_batch_that_no_plan_is_possible_for_runs_in_torch():
    network = OfSize(lambda x: F.pad(x, (0, x.size(0) // 4)).sort(3)[0]).eval().requires_grad_(False)
    strict, made = lpk.sparsify(network), lpk.sparsify(network, fallback="torch")
    for batch in (2, 4, 2):
        inputs = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(made(inputs), network(inputs), rtol=1e-4, atol=1e-4)
        if batch == 2:
            torch.testing.assert_close(strict(inputs), network(inputs), rtol=1e-4, atol=1e-4)
