"""Softmax attention on the engine against PyTorch's in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from lpk.sparse import kernels
from lpk.sparse.blocks import Blocks, empty_blocks
from lpk.sparse.steps import Heads
from tests.sparse.engine import INSTRUCTION_SETS, configured, fails, generator, random
from tests.sparse.test_elementwise import check, cut_blocks

TOKENS = (1, 16)  # patches of a row of tokens


def heads_of(x, where, count, size):
    """[batch, heads, tokens, size] of [batch, channels, height, width]."""
    channels = [[where.first + h * where.head + i * where.step for i in range(size)] for h in range(count)]
    return x.flatten(2)[:, torch.tensor(channels)].transpose(2, 3)


def expected(query, key, value, heads, count, size, scale):
    q, k, v = (heads_of(x, where, count, size) for x, where in zip((query, key, value), heads, strict=True))
    out = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    return out.transpose(2, 3).reshape(len(query), count * size, *query.shape[2:])


def side_by_side(count, size):
    """As the output of one layer has queries, keys and values."""
    return [Heads(i * count * size, size, 1) for i in range(3)]


def attended(x, count, size, scale=1.0):
    """Of one value with tokens, on each instruction set."""
    blocks = cut_blocks(x, 0, TOKENS)
    out = empty_blocks(len(x), count * size, *x.shape[2:], patches=TOKENS)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            call = (blocks, blocks, blocks, out, side_by_side(count, size), count, size, scale)
            yield kernels.unpack_output(kernels.attention(*call))


@pytest.mark.parametrize(
    ("image", "cut", "batch", "count", "size", "borders"),
    [
        ((1, 16), TOKENS, 1, 3, 64, (0, 0)),
        ((1, 17), TOKENS, 3, 2, 32, (0, 1)),
        ((1, 197), TOKENS, 1, 3, 64, (0, 0)),
        ((1, 197), TOKENS, 3, 2, 20, (1, 0)),
        ((1, 300), TOKENS, 3, 1, 64, (0, 0)),
        ((1, 300), TOKENS, 1, 2, 7, (1, 2)),
        ((14, 15), (4, 4), 2, 2, 32, (1, 1)),
        ((9, 5), (8, 2), 3, 2, 20, (2, 0)),
        ((33, 1), (16, 1), 1, 5, 7, (0, 0)),
        ((1, 3), TOKENS, 1, 1, 1, (0, 0)),
    ],
)
def test_attention(image, cut, batch, count, size, borders):
    """Queries, keys and values of one layer. What lies behind the image is NaN, and counts for nothing."""
    generator.manual_seed(0)
    x = random(batch, 3 * count * size, *image)
    blocks, heads, scale = cut_blocks(x, borders[0], cut), side_by_side(count, size), size**-0.5
    call = lambda out: kernels.attention(blocks, blocks, blocks, out, heads, count, size, scale)  # noqa: E731
    check(call, expected(x, x, x, heads, count, size, scale), borders[1], cut, 3e-6)


@pytest.mark.parametrize(
    ("queries", "keys", "patches"), [((1, 40), (1, 150), TOKENS), ((4, 40), (5, 9), (2, 8)), ((6, 7), (1, 16), (1, 16))]
)
def test_other_tokens_and_heads(queries, keys, patches):
    """Keys and values from elsewhere than queries; the numbers of a head apart, and heads inside each other."""
    generator.manual_seed(1)
    count, size = 3, 10
    heads = [Heads(2, 1, 3), Heads(0, 20, 2), Heads(5 * 30 - 1, -10, -1)]
    query, key, value = random(2, 40, *queries), random(2, 60, *keys), random(2, 150, *keys)
    cut = (4, 4) if patches != TOKENS else TOKENS
    first, second, third = (
        cut_blocks(x, i, p) for i, (x, p) in enumerate(zip((query, key, value), (cut, patches, patches), strict=True))
    )
    call = lambda out: kernels.attention(first, second, third, out, heads, count, size, 0.5)  # noqa: E731
    check(call, expected(query, key, value, heads, count, size, 0.5), 1, cut, 3e-6)


def test_large_scores():
    """The largest score takes all the weight, wherever it is found; equal ones share it."""
    tokens = 300
    x = torch.zeros(1, 9, 1, tokens)
    x[0, 0, 0] = (torch.arange(tokens) % 3 - 1) * 1e8
    x[0, 3, 0] = torch.arange(tokens) * 1e27
    x[0, 6:, 0] = random(3, tokens)
    last, first, mean = x[0, 6:, 0, -1], x[0, 6:, 0, 0], x[0, 6:, 0].double().mean(1)
    for got in attended(x, 1, 3):
        assert torch.equal(got[0, :, 0, 2::3], last[:, None].expand(3, 100))
        assert torch.equal(got[0, :, 0, ::3], first[:, None].expand(3, 100))
        assert float((got[0, :, 0, 1::3] - mean[:, None]).abs().max()) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite(bad):
    """It alone is NaN, and only in its head."""
    generator.manual_seed(2)
    x = random(1, 2 * 3 * 20, 1, 150)
    before = list(attended(x, 2, 20))
    x[0, 25, 0, 77] = bad
    for got, finite in zip(attended(x, 2, 20), before, strict=True):
        is_nan = torch.zeros(40, 150, dtype=torch.bool)
        is_nan[20:, 77] = True
        assert torch.equal(got[0, :, 0].isnan(), is_nan)
        assert torch.equal(got[0, :, 0][~is_nan], finite[0, :, 0][~is_nan])


def test_keys_without_weight():
    """Scores of minus infinity leave the others as they are, even where all keys of a chunk, the first pixels of each
    patch, have them; if all keys have, there is no mean."""
    generator.manual_seed(3)
    x = random(1, 12, 1, 300)
    x[0, 0] = 1.0
    x[0, 4, 0, torch.arange(300) % 19 < 12] = -math.inf  # patches of 19, chunks of 152 keys
    heads = side_by_side(1, 4)
    wanted = expected(x, x, x, heads, 1, 4, 1.0)
    for got in attended(x, 1, 4):
        assert float((got - wanted).abs().max()) < 3e-6
    x[0, 4] = -math.inf
    assert all(bool(got.isnan().all()) for got in attended(x, 1, 4))


def test_a_value_that_is_not_finite():
    """All queries of its head have it, even those whose weight for it is zero."""
    x = random(1, 6, 1, 40)
    x[0, 4, 0, 3] = math.nan
    for got in attended(x, 1, 2):
        assert bool(got[0, 0].isnan().all()) and bool(got[0, 1].isfinite().all())


def test_errors():
    x = empty_blocks(2, 24, 1, 40, patches=TOKENS)
    heads = side_by_side(2, 4)

    def call(query=x, key=x, value=x, out=None, heads=heads, count=2, size=4):
        out = out or empty_blocks(2, 8, 1, 40, patches=TOKENS)
        return kernels.attention(query, key, value, out, heads, count, size, 1.0)

    assert call().shape == (2, 8, 1, 40)
    with fails(ValueError, "query must be cut into 16 patches", "(1, 8)"):
        call(query=empty_blocks(2, 24, 1, 40, patches=(1, 8)))
    with fails(ValueError, "the heads of value are channels 17 to 24", "24"):
        call(heads=[*heads[:2], Heads(17, 4, 1)])
    with fails(ValueError, "the heads of key are channels -4 to 3"):
        call(heads=[heads[0], Heads(0, -4, 1), heads[2]])
    with fails(ValueError, "heads of 0 numbers"):
        call(size=0)
    with fails(ValueError, "of 2 values"):
        call(heads=heads[:2])
    with fails(ValueError, "out must have the shape [2, 8, 1, 40]"):
        call(out=empty_blocks(2, 7, 1, 40, patches=TOKENS))
    with fails(ValueError, "out must be cut"):
        call(out=empty_blocks(2, 8, 1, 40, patches=TOKENS, patch=(1, 4)))
    with fails(ValueError, "key must have 2 samples, not 3"):
        more = empty_blocks(3, 24, 1, 40, patches=TOKENS)
        call(key=more, value=more)
    with fails(ValueError, "value must have the shape [2, 24, 1, 40]"):
        call(value=empty_blocks(2, 24, 1, 41, patches=TOKENS))
    with fails(ValueError, "value must be cut"):
        call(value=empty_blocks(2, 24, 1, 40, patches=TOKENS, patch=(1, 4)))
    with fails(ValueError, "overlap query"):
        call(out=x.channels(0, 8))
    whole = empty_blocks(2, 32, 1, 40, patches=TOKENS)
    part = Blocks(whole.data[:, 8:], 2, 0, TOKENS, (1, 40))
    assert call(query=part, key=part, value=part, out=whole.channels(0, 8)).shape == (2, 8, 1, 40)
