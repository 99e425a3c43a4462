"""Convolutions against PyTorch's in float64, in every form of their filters."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from lpk import _core
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import Blocks, empty_blocks
from lpk.sparse.packing import Convolution
from tests.sparse.engine import (
    INSTRUCTION_SETS,
    MODULES,
    SLOPE,
    arbitrary,
    check_close,
    configured,
    fails,
    generator,
    in_blocks,
    random,
    same_for_all_threads,
)


@st.composite
def convolutions(draw):
    """A convolution, and the height and width of an input."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    convolution = Convolution(
        filters=groups * draw(st.integers(1, 9)),
        channels=groups * draw(st.integers(1, 7)),
        kernel=draw(pair(1, 5)),
        stride=draw(pair(1, 3)),
        padding=draw(pair(0, 2)),
        dilation=draw(pair(1, 2)),
        groups=groups,
    )
    least = [
        max(1, d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(convolution.kernel, convolution.padding, convolution.dilation, strict=True)
    ]
    return convolution, *(n + draw(st.integers(0, 12)) for n in least)


@st.composite
def winograd_convolutions(draw):
    """The same, of those that Winograd's algorithm is for; some with more filters than lie together."""
    size, stride = draw(st.sampled_from([(3, 1), (7, 2)]))
    padding = draw(st.tuples(st.integers(0, size // 2 + 1), st.integers(0, size // 2 + 1)))
    filters, channels = draw(st.integers(1, 14)), draw(st.sampled_from([1, 2, 5, 97] if size == 3 else [1, 3, 4]))
    convolution = Convolution(filters, channels, (size, size), (stride, stride), padding)
    return convolution, *(max(1, size - 2 * p) + draw(st.integers(0, 12 * stride)) for p in padding)


@st.composite
def pixel_convolutions(draw):
    """The same, of windows of one pixel; some with images that are several tiles wide."""
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    padding = draw(st.sampled_from([(0, 0), (0, 0), (1, 0)]))
    convolution = Convolution(draw(st.integers(1, 20)), draw(st.integers(1, 9)), (1, 1), stride, padding)
    return convolution, *draw(st.sampled_from([(1, 60), (7, 7), (14, 9), (3, 30), (1, 1), (5, 2)]))


@st.composite
def depthwise_convolutions(draw):
    """The same, of those whose groups have one channel; some with images that are several tiles wide and high."""
    channels = draw(st.integers(1, 4))
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    convolution = Convolution(
        filters=channels * draw(st.sampled_from([1, 1, 2, 3])),
        channels=channels,
        kernel=draw(st.sampled_from([(3, 3), (5, 5), (7, 7), (1, 1), (2, 3), (4, 1)])),
        stride=draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 3)])),
        padding=draw(pair(0, 3)),
        dilation=draw(pair(1, 2)),
        groups=channels,
    )
    sizes = zip(convolution.kernel, convolution.padding, convolution.dilation, strict=True)
    return convolution, *(max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 40)) for k, p, d in sizes)


@st.composite
def single_pixel_convolutions(draw):
    """The same, of those that leave one pixel; some with more weights than are taken at once, and more filters than lie
    side by side."""
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel, stride, dilation = draw(pair(1, 3)), draw(pair(1, 2)), draw(pair(1, 2))
    filters, channels = draw(st.sampled_from([1, 8, 17, 70])), draw(st.sampled_from([1, 5, 40]))
    convolution = Convolution(filters, channels, kernel, stride, draw(pair(0, 1)), dilation)
    sizes = [
        (d * (k - 1) + 1 - 2 * p, s) for k, s, p, d in zip(kernel, stride, convolution.padding, dilation, strict=True)
    ]
    hypothesis.assume(all(n + s - 1 >= 1 for n, s in sizes))
    return convolution, *(max(1, n + draw(st.integers(0, s - 1))) for n, s in sizes)


around = dict(
    batch=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    borders=st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)),
    has=st.tuples(*[st.booleans()] * 3),
    activation=st.sampled_from(list(MODULES)),
    seed=st.integers(0, 99),
)


@arbitrary
@hypothesis.given(problem=convolutions(), channels_per_block=st.sampled_from([None, 1, 2, 3]), **around)
def test_convolution(channels_per_block, **given):
    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_filters(weight, convolution, x, channels_per_block)
        yield lambda: packing.pack_dense_filters(weight, convolution, x)
        yield lambda: compiled(weight, convolution, x)

    check_convolution(packed, **given)


@hypothesis.settings(arbitrary, max_examples=20)
@hypothesis.given(
    problem=pixel_convolutions(),
    channels_per_block=st.sampled_from([None, 2]),
    gathered=st.sampled_from([0, 1, 5, 8, 28]),
    **around | dict(batch=st.sampled_from([1, 16, 17]), borders=st.sampled_from([(0, 0, 0), (0, 0, 1), (1, 0, 0)])),
)
def test_windows_of_one_pixel(channels_per_block, gathered, **given):
    """Their inputs may be gathered; without borders, images are one row."""

    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_filters(weight, convolution, x, channels_per_block, gathered)
        yield lambda: packing.pack_dense_filters(weight, convolution, x)
        yield lambda: compiled(weight, convolution, x)

    check_convolution(packed, **given)


@hypothesis.settings(arbitrary, max_examples=25)
@hypothesis.given(problem=winograd_convolutions(), **around)
def test_winograd_convolution(**given):
    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_winograd_filters(weight, convolution, out)

    check_convolution(packed, **given, tile=True)


@hypothesis.settings(arbitrary, max_examples=20)
@hypothesis.given(problem=depthwise_convolutions(), **around | dict(batch=st.sampled_from([1, 16, 17])))
def test_depthwise_convolution(**given):
    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_depthwise_filters(weight, convolution, x)

    check_convolution(packed, **given)


@hypothesis.settings(arbitrary, max_examples=20)
@hypothesis.given(problem=single_pixel_convolutions(), **around)
def test_convolution_to_single_pixels(**given):
    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_lane_filters(weight, convolution, x)

    check_convolution(packed, **given)


@pytest.mark.parametrize("batch, size", [(1, 4), (1, 2), (3, 2), (4, 2), (2, 2)])
def test_patches_of_single_pixels(batch, size):
    x, weight, bias = random(batch, 9, size, size), random(70, 9, 3, 3), random(70)
    convolution, cut = Convolution(70, 9, (3, 3), padding=(1, 1)), dict(patches=(size, size))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).float()
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            blocks = kernels.pack_input(x, empty_blocks(*x.shape, 1, **cut))
            out = empty_blocks(batch, 70, size, size, **cut)
            kernels.convolution(packing.pack_lane_filters(weight, convolution, blocks), blocks, out, bias=bias)
            torch.testing.assert_close(kernels.unpack_output(out), expected, rtol=1e-4, atol=1e-4)


def compiled(weight, convolution, x):
    """Where the instruction set in use has machine code for filters."""
    pack = packing.compile_filters if _core.compiles(convolution.handle, x.handle) else packing.pack_filters
    return pack(weight, convolution, x)


@pytest.mark.skipif("avx512" not in INSTRUCTION_SETS, reason="filters are compiled for AVX-512")
@pytest.mark.parametrize("density", [0, 0.03, 0.3, 1])
@pytest.mark.parametrize(
    "kernel, channels, filters, size", [(1, 300, 65, (6, 14)), (3, 90, 31, (9, 9)), (1, 5, 3, (2, 70))]
)
def test_compiled_filters_have_the_bits_of_the_loops(kernel, channels, filters, size, density):
    """Of several parts and groups, over several rows, or pieces of one."""
    convolution = Convolution(filters, channels, (kernel, kernel), padding=(kernel // 2, kernel // 2))
    x, residual = in_blocks(random(20, channels, *size), kernel // 2), in_blocks(random(20, filters, *size), 1)
    weight, scale, bias = random(*convolution.weight_shape), random(filters), random(filters)
    weight *= torch.rand(weight.shape, generator=generator) < density
    with configured("avx512", 3):
        for activation in ("identity", "relu", "relu6", "silu"):
            for added in (None, residual):
                outs = [
                    kernels.convolution(
                        pack(weight, convolution, x), x, empty_blocks(20, filters, *size), scale=scale, bias=bias,
                        residual=added, activation=activation,
                    ).data
                    for pack in (packing.pack_filters, packing.compile_filters)
                ]  # fmt: skip
                assert torch.equal(*outs)


def check_convolution(packed, problem, batch, density, borders, has, activation, seed, tile=False):
    """packed: the ways to pack filters for x and out; tile: whether pixels share each other's rounding."""
    convolution, height, width = problem
    generator.manual_seed(seed)
    filters = convolution.filters
    x = random(batch, convolution.channels, height, width)
    weight = random(*convolution.weight_shape)
    weight *= torch.rand(weight.shape, generator=generator) < density
    size = dict(
        batch=batch, channels=filters, height=convolution.output_size(height, width)[0],
        width=convolution.output_size(height, width)[1], border=borders[1],
    )  # fmt: skip
    scale, bias = random(filters) if has[0] else None, random(filters) if has[1] else None
    residual = random(*list(size.values())[:-1]) if has[2] else None

    def apply(x, weight, scale, bias, residual):
        """In float64: what PyTorch computes from these."""
        weight = weight.double() * (1.0 if scale is None else scale.double()[:, None, None, None])
        bias = None if bias is None else bias.double()
        y = F.conv2d(
            x.double(), weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        )
        return y if residual is None else y + residual

    given = x, weight, scale, bias, residual
    expected = MODULES[activation](apply(*given))
    magnitude = apply(*(None if t is None else t.abs() for t in given))
    magnitude = magnitude.amax((2, 3), keepdim=True) if tile else magnitude
    blocks = in_blocks(x, max(convolution.padding) + borders[0])
    residual_blocks = None if residual is None else in_blocks(residual, borders[2])
    like = empty_blocks(**size)
    for pack in packed(weight, convolution, blocks, like):
        call = lambda out, pack=pack: kernels.convolution(  # noqa: E731
            pack(),
            blocks,
            out,
            scale=scale,
            bias=bias,
            residual=residual_blocks,
            activation=activation,
            slope=SLOPE,
        )
        for out in same_for_all_threads(call, **size):
            check_close(out, expected, magnitude)


@pytest.mark.parametrize("batch", [1, 16, 129])
def test_linear(batch):
    """A 1 x 1 convolution on images of one pixel."""
    x, weight, bias = random(batch, 70, 1, 1), random(33, 70, 1, 1), random(33)
    expected = F.linear(x.flatten(1).double(), weight.flatten(1).double(), bias.double())[:, :, None, None]
    convolution, blocks = Convolution(33, 70, (1, 1)), in_blocks(x)
    for filters in (
        packing.pack_filters(weight, convolution, blocks),
        packing.pack_dense_filters(weight, convolution, blocks),
    ):
        for out in same_for_all_threads(
            lambda out, filters=filters: kernels.convolution(filters, blocks, out, bias=bias),
            batch=batch, channels=33, height=1, width=1, border=0,
        ):  # fmt: skip
            check_close(out, expected, 70 * torch.ones(()))


def test_the_residual_may_be_the_output():
    x, weight = random(20, 4, 9, 9), random(4, 4, 3, 3)
    convolution, blocks = Convolution(4, 4, (3, 3), padding=(1, 1)), in_blocks(x, 1)
    added = random(20, 4, 9, 9)
    expected = F.relu(F.conv2d(x.double(), weight.double(), padding=1) + added)
    for filters in (
        packing.pack_winograd_filters(weight, convolution, blocks),
        packing.pack_filters(weight, convolution, blocks),
        compiled(weight, convolution, blocks),
    ):
        out = in_blocks(added)
        check_close(kernels.convolution(filters, blocks, out, residual=out, activation="relu"), expected, 30)
    whole = empty_blocks(20, 9, 9, 9)
    out, shifted = Blocks(whole.data[:, :4], 20, 0), Blocks(whole.data[:, 3:7], 20, 0)
    with fails(ValueError, "out", "overlap residual"):
        kernels.convolution(filters, blocks, out, residual=shifted)
    kernels.convolution(filters, blocks, out, residual=Blocks(whole.data[:, 4:8], 20, 0))


def test_nan_is_not_hidden():
    x = random(3, 2, 5, 5)
    x[1, 0, 2, 2] = float("nan")
    convolution, blocks = Convolution(3, 2, (3, 3), padding=(1, 1)), in_blocks(x, 1)
    weight = random(3, 2, 3, 3)
    expected = F.relu(F.conv2d(x, weight, padding=1)).isnan()
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            for filters in (
                packing.pack_filters(weight, convolution, blocks),
                packing.pack_dense_filters(weight, convolution, blocks),
            ):
                out = kernels.convolution(filters, blocks, empty_blocks(3, 3, 5, 5), activation="relu")
                assert torch.equal(kernels.unpack_output(out).isnan(), expected)
            filters = packing.pack_winograd_filters(weight, convolution, blocks)
            out = kernels.convolution(filters, blocks, empty_blocks(3, 3, 5, 5), activation="relu")
            found = kernels.unpack_output(out).isnan()  # and may spread to the 4 x 4 pixels that are computed together
            assert bool(found[expected].all()) and not found[[0, 2]].any()


def test_errors_of_convolutions():
    with fails(ValueError, "2 groups"):
        Convolution(3, 4, (1, 1), groups=2)
    with fails(ValueError, "too small"):
        Convolution(3, 4, (1, 0))
    convolution = Convolution(3, 2, (3, 3), padding=(1, 1))
    x, out = empty_blocks(5, 2, 6, 6, 1), empty_blocks(5, 3, 6, 6)
    with fails(ValueError, "weight", "[3, 2, 3, 3]"):
        packing.pack_filters(random(3, 2, 3, 4), convolution, x)
    filters = packing.pack_filters(random(3, 2, 3, 3), convolution, x)
    with fails(ValueError, "one channel", "2"):
        packing.pack_depthwise_filters(random(3, 2, 3, 3), convolution, x)
    with fails(ValueError, "one group", "2"):
        packing.pack_lane_filters(random(4, 1, 3, 3), Convolution(4, 2, (3, 3), groups=2), x)
    with fails(ValueError, "one pixel", "(6, 6)"):
        kernels.convolution(packing.pack_lane_filters(random(3, 2, 3, 3), convolution, x), x, out)
    with fails(ValueError, "scale", "[3]"):
        kernels.convolution(filters, x, out, scale=random(2))
    with fails(ValueError, "2 input channels", "3"):
        kernels.convolution(filters, empty_blocks(5, 3, 6, 6, 1), out)
    with fails(ValueError, "border of x is 0"):
        kernels.convolution(filters, empty_blocks(5, 2, 6, 6), out)
    with fails(ValueError, "packed"):
        kernels.convolution(filters, empty_blocks(5, 2, 6, 6, 2), out)
    with fails(ValueError, "out", "[5, 3, 6, 6]"):
        kernels.convolution(filters, x, empty_blocks(5, 3, 6, 5))
    with fails(ValueError, "residual"):
        kernels.convolution(filters, x, out, residual=x)
    square = Convolution(2, 2, (3, 3), padding=(1, 1))
    with fails(ValueError, "out", "overlap x"):
        kernels.convolution(packing.pack_filters(random(2, 2, 3, 3), square, x), x, x)
