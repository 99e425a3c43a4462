"""Token sequences: linear layers and attention on the engine, nothing computed twice."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lpk
from lpk.sparse.network import Network
from lpk.sparse.steps import Attention, Convolve, LayerNorm, Pack, Unpack
from tests.sparse.networks import pruned, same


class SelfAttention(nn.Module):
    """As timm has it."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), SelfAttention(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, depth=3, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.mark.parametrize("batch", [1, 3, 16, 20])
def test_a_transformer(batch):
    torch.manual_seed(0)
    same(pruned(Transformer(), 0.3), torch.randn(batch, 3, 16, 20))


def test_each_layer_runs_once():
    depth = 4
    plan = Network(Transformer(depth).eval(), (3, 16, 20), dead=False).plan
    assert len(plan.layers) == 2 + 4 * depth
    assert sum(isinstance(step, LayerNorm) for step in plan.steps) >= 2 * depth
    calls = [node for part in plan.in_pytorch for node in part.graph.nodes if node.op == "call_module"]
    assert not any("qkv" in str(node.target) or "up" in str(node.target) for node in calls)
    assert sum(isinstance(step, Attention) for step in plan.steps) == depth
    assert len(plan.foreign) == 2  # before the first block, and the token that is read
    unpacked = [step for step in plan.steps if isinstance(step, Unpack) and step.values]
    assert len(unpacked) == 3  # the images' patches, what the head reads and returns
    assert sum(isinstance(step, Pack) for step in plan.steps) <= 4


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("norm_first", [False, True])
def test_pytorchs_encoder_is_taken_apart(norm_first, batch):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 40, activation=F.gelu, batch_first=True, norm_first=norm_first)
    network = pruned(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(24), enable_nested_tensor=False), 0.4)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0)
    assert len(Network(network, (7, 24), dead=False).plan.layers) == 8
    same(network, torch.randn(batch, 7, 24))


@pytest.mark.parametrize("mask", [None, torch.zeros(7, 7), torch.ones(7, 7).triu(1).bool()])
def test_attention_with_a_mask_or_weights(mask):
    """It is PyTorch's where more is asked than the layers and functions that it is made of."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.attention = nn.Linear(24, 24), nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x):
            x = self.up(x)
            attended, weights = self.attention(x, x, x, attn_mask=mask)
            return self.up(attended) + weights.sum(2, keepdim=True)

    torch.manual_seed(0)
    network = pruned(Masked(), 0.5)
    inputs = torch.randn(3, 7, 24)
    with torch.no_grad():
        torch.testing.assert_close(lpk.sparsify(network)(inputs), network(inputs), rtol=1e-4, atol=1e-5)


class Embedded(nn.Module):
    """Decides by shapes, as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 24), nn.Embedding(16, 24)
        self.block, self.out = Block(24), nn.Linear(24, 3)

    def forward(self, words, mask=None, places=None):
        batch, length = words.shape
        if length > 16:
            raise ValueError("too long")
        if places is None:
            places = torch.arange(length, device=words.device)[None]
        x = self.words(words) + self.places(places)
        for part in x.split(4, 1):
            if part.shape[1] != 4:
                raise ValueError("no multiple of 4")
        if mask is not None:
            x = x * mask[:, :, None]
        return {"last": self.out(self.block(x)), "batch": batch}


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_integer_inputs_and_decisions_by_shapes(batch):
    torch.manual_seed(0)
    network = pruned(Embedded(), 0.4)
    made, words = lpk.sparsify(network), torch.randint(0, 11, (batch, 8))
    for mask in (None, (torch.rand(batch, 8) < 0.5).float()):
        with torch.no_grad():
            expected = network(words, mask=mask)
        got = made(words, mask=mask)
        torch.testing.assert_close(got["last"], expected["last"], rtol=1e-4, atol=1e-5)
        assert got["batch"] == batch
    planned = list(made._networks.values())[-1].plan
    assert sum(isinstance(step, Convolve) for step in planned.steps) == 5
    with pytest.raises(lpk.sparse.NotSupported, match="too long"):
        made(torch.zeros(1, 20, dtype=torch.int64))


@pytest.mark.parametrize(
    "decides",
    [
        lambda x: int(x.max()) > 3,
        lambda x: x.max().item() > 3,
        lambda x: x.tolist()[0] > [3],
        lambda x: x.sum() > 0,
        lambda x: len(x[x > 3]) > 2,
        lambda x: x.nonzero().shape[0] > 1,
    ],
)
def test_decisions_by_values_are_still_refused(decides):
    class ByValue(Embedded):
        def forward(self, words):
            return super().forward(words if decides(words) else words + 1)

    with pytest.raises(lpk.sparse.NotSupported, match=r"control flow|the model decides by"):
        lpk.sparsify(ByValue().eval())(torch.zeros(2, 8, dtype=torch.int64))


def test_decisions_by_the_number_of_samples_hold_for_that_number():
    class ByNumber(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return self.linear(x) * (2 if x.shape[0] > 4 else 1)

    network = ByNumber().eval().requires_grad_(False)
    made = lpk.sparsify(network)
    torch.testing.assert_close(made(torch.ones(2, 6)), network(torch.ones(2, 6)))
    with pytest.raises(lpk.sparse.NotSupported, match="something else for 8 samples"):
        made(torch.ones(8, 6))
    patient = lpk.sparsify(network, fallback="torch")
    for batch in (2, 8, 3):
        torch.testing.assert_close(patient(torch.ones(batch, 6)), network(torch.ones(batch, 6)))


def test_windows_of_tokens():
    """As Swin has them: rows that are parts of samples."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inside, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            b, h, w, c = x.shape
            windows = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
            windows = F.gelu(self.inside(windows)).softmax(1)
            x = windows.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            return self.head(x.permute(0, 3, 1, 2))

    torch.manual_seed(0)
    network = pruned(Windows(), 0.5)
    assert len(Network(network, (3, 8, 12), dead=False).plan.layers) == 3
    for batch in (1, 2, 5, 20):
        same(network, torch.randn(batch, 3, 8, 12))
