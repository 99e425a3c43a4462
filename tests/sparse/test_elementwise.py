"""Products, norms and means over what is cut into patches as over what is not, against PyTorch's in float64."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from lpk.sparse import kernels
from lpk.sparse.blocks import Blocks, empty_blocks
from tests.sparse.engine import (
    INSTRUCTION_SETS,
    MODULES,
    SLOPE,
    arbitrary,
    configured,
    fails,
    generator,
    interior,
    random,
)

CUTS = [(1, 1), (1, 1), (1, 16), (2, 2), (4, 4), (2, 1), (16, 1)]
several = hypothesis.settings(arbitrary, max_examples=15)
problems = dict(
    size=st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20)),
    cut=st.sampled_from(CUTS),
    borders=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 9),
)


def cut_blocks(x, border, cut):
    """x in blocks; behind the image and in lanes without one, too, there are numbers, which are not x's."""
    blocks = empty_blocks(*x.shape, border, patches=cut)
    interior(blocks).fill_(float("nan"))
    kernels.pack_input(x, blocks)
    covered = cut_like(torch.ones_like(x), blocks)
    interior(blocks)[interior(covered) == 0] = float("nan")
    return blocks


def cut_like(x, blocks):
    whole = empty_blocks(*x.shape, blocks.border, patches=blocks.patches, patch=blocks.patch)
    return kernels.pack_input(x, whole)


def check(call, expected, border, cut, tolerance):
    """The same bits for each number of threads, an untouched border, and PyTorch's numbers."""
    for instruction_set in INSTRUCTION_SETS:
        results = []
        for threads in (1, 2, 3):
            with configured(instruction_set, threads):
                out = empty_blocks(*expected.shape, border, patches=cut)
                out.data.fill_(-7.0)
                assert call(out) is out
                results.append(kernels.unpack_output(out))
                interior(out).fill_(-7.0)
                assert bool((out.data == -7.0).all())
        assert all(torch.equal(result.view(torch.int32), results[0].view(torch.int32)) for result in results)
        assert bool(((results[0] - expected).abs() <= tolerance).all())


@several
@hypothesis.given(**problems, spread=st.booleans(), activation=st.sampled_from(list(MODULES)))
def test_multiply(size, cut, borders, seed, spread, activation):
    generator.manual_seed(seed)
    x, y = random(*size), random(*((*size[:2], 1, 1) if spread else size))
    expected = MODULES[activation](x.double() * y)
    first = cut_blocks(x, borders[0], cut)
    second = cut_blocks(y, borders[1], (1, 1) if spread else cut)
    call = lambda out: kernels.multiply(first, second, out, activation=activation, slope=SLOPE)  # noqa: E731
    check(call, expected, borders[1], cut, 1e-5)
    assert torch.equal(kernels.unpack_output(call(first)).isnan(), expected.isnan())
    assert float((kernels.unpack_output(first) - expected).abs().max()) < 1e-5


@several
@hypothesis.given(**problems)
def test_global_average_pool(size, cut, borders, seed):
    generator.manual_seed(seed)
    x = random(*size)
    blocks = cut_blocks(x, borders[0], cut)
    expected = x.double().mean((2, 3), keepdim=True)
    check(lambda out: kernels.global_average_pool(blocks, out), expected, borders[1], (1, 1), 1e-6)


def test_a_pool_and_what_is_multiplied_by_it():
    """More blocks of patches than of images, in one call: no thread may read what another has yet to write."""
    x = random(40, 3, 8, 8)
    expected = x.double() * x.double().mean((2, 3), keepdim=True).sigmoid()
    for threads in (1, 2, 3):
        with configured(threads=threads):
            blocks, out, means = (
                cut_blocks(x, 1, (4, 2)),
                empty_blocks(40, 3, 8, 8, patches=(4, 2)),
                empty_blocks(40, 3, 1, 1),
            )
            doubled = empty_blocks(40, 3, 8, 8, patches=(4, 2))
            kernels.run(
                [
                    kernels.prepare_scale_shift(blocks, doubled, scale=torch.full((3,), 2.0)),
                    kernels.prepare_scale_shift(doubled, doubled, scale=torch.full((3,), 0.5)),
                    kernels.prepare_global_average_pool(doubled, means),
                    kernels.prepare_scale_shift(means, means, activation="sigmoid"),
                    kernels.prepare_multiply(doubled, means, out),
                ]
            )
            assert float((kernels.unpack_output(out) - expected).abs().max()) < 1e-6


@several
@hypothesis.given(
    **{**problems, "size": st.tuples(st.integers(1, 20), st.integers(1, 150), st.integers(1, 5), st.integers(1, 20))},
    has=st.tuples(st.booleans(), st.booleans()),
    mean=st.sampled_from([0.0, 1.0, 3e3]),
)
def test_layer_norm(size, cut, borders, seed, has, mean):
    """Far from zero, too: only what float32 can't hold of the inputs is lost, and of their mean."""
    generator.manual_seed(seed)
    x = random(*size) + mean
    weight, bias = (random(size[1]) if given else None for given in has)
    seen = x.double().permute(0, 2, 3, 1)
    double = (None if t is None else t.double() for t in (weight, bias))
    expected = F.layer_norm(seen, (size[1],), *double, 1e-3).permute(0, 3, 1, 2)
    blocks = cut_blocks(x, borders[0], cut)
    call = lambda out: kernels.layer_norm(blocks, out, weight=weight, bias=bias, eps=1e-3)  # noqa: E731
    scale = 1.0 if weight is None else float(weight.abs().max())
    spread = float((seen.var(3, unbiased=False) + 1e-3).rsqrt().max())
    check(call, expected, borders[1], cut, (1 + scale) * (3e-6 + mean * 1.2e-7 * spread))
    assert float((kernels.unpack_output(call(blocks)) - expected).abs().max()) < 1e-3


def test_layer_norm_is_no_worse_than_pytorchs():
    for mean, channels in ((0.0, 768), (1.0, 768), (100.0, 3072), (1e4, 384)):
        x = random(16, channels, 1, 7) + mean
        seen = x.permute(0, 2, 3, 1).contiguous()
        expected = F.layer_norm(seen.double(), (channels,)).permute(0, 3, 1, 2)
        theirs = (F.layer_norm(seen, (channels,)).permute(0, 3, 1, 2) - expected).abs().mean()
        blocks = cut_blocks(x, 0, (1, 1))
        for instruction_set in INSTRUCTION_SETS:
            with configured(instruction_set):
                ours = kernels.unpack_output(kernels.layer_norm(blocks, empty_blocks(*x.shape)))
                assert float((ours - expected).abs().mean()) <= 1.1 * float(theirs) + 5e-8


@several
@hypothesis.given(**problems, count=st.integers(1, 9))
def test_pick(size, cut, borders, seed, count):
    generator.manual_seed(seed)
    x, channels = random(*size), torch.randint(0, size[1], (count,), generator=generator)
    blocks = cut_blocks(x, borders[0], cut)
    check(lambda out: kernels.pick(blocks, out, channels), x[:, channels].double(), borders[1], cut, 0.0)


def test_errors():
    x, cut = empty_blocks(5, 2, 6, 6), empty_blocks(5, 2, 6, 6, patches=(2, 2))
    with fails(ValueError, "out must be cut"):
        kernels.multiply(x, x, cut)
    with fails(ValueError, "y must have the shape", "[5, 2, 6, 1]"):
        kernels.multiply(x, empty_blocks(5, 2, 6, 1), x)
    with fails(ValueError, "y must have the shape"):
        kernels.multiply(cut, empty_blocks(5, 2, 1, 1, patches=(2, 2), patch=(1, 1)), cut)
    whole = empty_blocks(5, 5, 6, 6)
    first, second = (Blocks(whole.data[:, i : i + 4], 5, 0) for i in (0, 1))
    with fails(ValueError, "overlap y"):
        kernels.multiply(empty_blocks(5, 4, 6, 6), second, first)
    with fails(ValueError, "overlap x"):
        kernels.layer_norm(first, second)
    with fails(ValueError, "overlap x"):
        kernels.pick(first, second, torch.arange(4))
    with fails(ValueError, "weight", "[2]"):
        kernels.layer_norm(x, x, weight=random(3))
    with fails(TypeError, "int64"):
        kernels.pick(x, empty_blocks(5, 2, 6, 6), torch.arange(2, dtype=torch.int32))
    with fails(ValueError, "from 0 to 1", "-1 to 1"):
        kernels.pick(x, empty_blocks(5, 2, 6, 6), torch.tensor([1, -1]))
    with fails(ValueError, "out must have the shape", "[5, 1, 6, 6]"):
        kernels.pick(x, empty_blocks(5, 2, 6, 6), torch.tensor([1]))
    with pytest.raises(KeyError):
        kernels.scale_shift(x, x, activation="mish")
