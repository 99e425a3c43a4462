"""Attention on the engine: which views of queries, keys, values and results it is found through, and what is left."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lpk.sparse.network import Network
from lpk.sparse.steps import Attention
from tests.sparse.networks import pruned, same

HEADS, WIDTH, TOKENS = 4, 32, 21


class Attending(nn.Module):
    """Tokens [B, T, width] between two layers; `attend` computes from the first one's output [B, T, 3 · width]."""

    def __init__(self, attend, width=WIDTH):
        super().__init__()
        self.qkv, self.proj, self.attend = nn.Linear(width, 3 * width), nn.Linear(width, width), attend

    def forward(self, x):
        return self.proj(self.attend(self.qkv(x)))


def unbound(qkv, heads=HEADS):
    b, n, c = qkv.shape
    return qkv.reshape(b, n, 3, heads, c // 3 // heads).permute(2, 0, 3, 1, 4).unbind(0)


def joined(x):
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


def as_timm(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k, v, dropout_p=0.0))


def by_parts(qkv):
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for part in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(-3, -2).flatten(-2)


def made_contiguous(qkv):
    q, k, v = (part.view(part.shape[0], -1, HEADS, 8).transpose(1, 2) for part in qkv.split(WIDTH, 2))
    attended = F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=None, is_causal=False)
    return attended.transpose(1, 2).contiguous().reshape(*qkv.shape[:2], -1)


def strided(qkv):
    """The numbers of a head lie HEADS channels apart, and the queries first of three neighbours."""
    b, n, c = qkv.shape
    q, k, v = qkv.view(b, n, c // 3 // HEADS, HEADS, 3).permute(4, 0, 3, 1, 2).unbind(0)
    return joined(F.scaled_dot_product_attention(q, k, v))


def one_head(qkv):
    q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).squeeze(1)


def rows(qkv):
    """All tokens one below the other."""
    q, k, v = unbound(qkv)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, WIDTH).view(-1, TOKENS, WIDTH)


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("attend", [as_timm, by_parts, made_contiguous, strided, one_head, rows])
def test_on_the_engine(attend, batch):
    torch.manual_seed(0)
    network = pruned(Attending(attend), 0.4)
    plan = Network(network, (TOKENS, WIDTH), dead=False).plan
    assert [type(step) for step in plan.steps].count(Attention) == 1 and not plan.in_pytorch
    same(network, torch.randn(batch, TOKENS, WIDTH))


class OfImages(nn.Module):
    """The pixels are tokens; the queries are from other layers, and fewer numbers than an image has channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 32, 1)
        self.last = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x):
        q = self.first(x).flatten(2).unflatten(1, (2, 8)).transpose(2, 3)
        k, v = (part.flatten(2).view(-1, 2, 8, 35).transpose(2, 3) for part in self.second(x).chunk(2, 1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.last(attended.reshape(-1, 16, 5, 7))


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_of_images(batch):
    torch.manual_seed(0)
    network = pruned(OfImages(), 0.5)
    plan = Network(network, (3, 5, 7), dead=False).plan
    assert [type(step) for step in plan.steps].count(Attention) == 1 and not plan.in_pytorch
    same(network, torch.randn(batch, 3, 5, 7))


def masked(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k, v, torch.ones(TOKENS, TOKENS).tril().bool()))


def causal(qkv):
    return joined(F.scaled_dot_product_attention(*unbound(qkv), is_causal=True))


def grouped(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True))


def scaled_before(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q * 2, k, v))


def changed_in_place(qkv):
    q, k, v = unbound(qkv)
    q.mul_(2)
    return joined(F.scaled_dot_product_attention(q, k, v))


def changed_afterwards(qkv):
    q, k, v = unbound(qkv)
    attended = F.scaled_dot_product_attention(q, k, v)
    qkv.mul_(2)
    return joined(attended) + qkv[..., :WIDTH]


def read_twice(qkv):
    attended = F.scaled_dot_product_attention(*unbound(qkv))
    return joined(attended) + attended.mean((1, 2, 3))[:, None, None]


def of_the_last_tokens(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:]))


def of_the_first_tokens(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1]))


def of_the_first_token(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k, v[:, :, :1].expand_as(v)))


def of_the_first_sample(qkv):
    q, k, v = unbound(qkv)
    return joined(F.scaled_dot_product_attention(q, k[:1].expand_as(k), v))


def of_larger_values(qkv):
    q, k, v, _ = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.split([16, 16, 32, 32], -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def changed_itself(qkv):
    attended = F.scaled_dot_product_attention(*unbound(qkv))
    attended.mul_(2)
    return joined(attended)


def in_windows(qkv):
    windows = qkv.view(qkv.shape[0] * 3, 7, 3 * WIDTH)
    return joined(F.scaled_dot_product_attention(*unbound(windows))).view(qkv.shape[0], TOKENS, WIDTH)


def by_sample(qkv):
    """Heads, not tokens, are brought together."""
    return F.scaled_dot_product_attention(*unbound(qkv)).reshape(qkv.shape[0], TOKENS, WIDTH)


def among_samples(qkv):
    """Tokens of other samples are attended to."""
    q, k, v = (part.transpose(0, 2) for part in unbound(qkv))
    return F.scaled_dot_product_attention(q, k, v).transpose(0, 2).transpose(1, 2).reshape(qkv.shape[0], TOKENS, WIDTH)


@pytest.mark.parametrize(
    "attend",
    [
        *(masked, causal, grouped, scaled_before, changed_in_place, changed_afterwards, read_twice),
        *(of_the_last_tokens, of_the_first_tokens, of_the_first_token, of_the_first_sample, of_larger_values),
        *(changed_itself, in_windows, by_sample, among_samples),
    ],
)
def test_left_to_pytorch(attend):
    torch.manual_seed(0)
    network = pruned(Attending(attend), 0.4)
    plan = Network(network, (TOKENS, WIDTH), dead=False).plan
    assert not any(isinstance(step, Attention) for step in plan.steps) and plan.in_pytorch
    for batch in (1, 4):
        same(network, torch.randn(batch, TOKENS, WIDTH))


def test_few_tokens_are_left_to_pytorch():
    """Some lanes would be empty."""
    plan = Network(pruned(Attending(as_timm), 0.4), (15, WIDTH), dead=False).plan
    assert not any(isinstance(step, Attention) for step in plan.steps)


def test_a_number_of_samples_for_which_the_heads_are_others():
    """The plan does not hold for it."""

    def attend(qkv):
        return joined(F.scaled_dot_product_attention(*unbound(qkv, 4 // (1 + (qkv.shape[0] == 5)))))

    torch.manual_seed(0)
    network = pruned(Attending(attend), 0.4)
    on_engine = Network(network, (TOKENS, WIDTH), dead=False)
    for batch in (2, 5):
        same(network, torch.randn(batch, TOKENS, WIDTH))
    assert on_engine.plan.holds(2) and not on_engine.plan.holds(5)
