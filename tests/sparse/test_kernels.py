"""The inference engine's operations against PyTorch's in float64, and the same bits for every number of threads."""

import contextlib
import itertools
import re

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from lpk import _core
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import Blocks, empty_blocks
from lpk.sparse.packing import Convolution

INSTRUCTION_SETS = _core.instruction_sets()
MODULES = {"identity": lambda x: x, "relu": F.relu, "relu6": F.relu6}
arbitrary = hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
generator = torch.Generator()


@contextlib.contextmanager
def configured(instruction_set="auto", threads=None):
    before = torch.get_num_threads()
    try:
        _core.set_instruction_set(instruction_set)
        torch.set_num_threads(threads or before)
        yield
    finally:
        _core.set_instruction_set("auto")
        torch.set_num_threads(before)


def random(*shape):
    return torch.randn(*shape, generator=generator)


def in_blocks(x, border=0):
    return kernels.pack_input(x, empty_blocks(*x.shape, border))


def with_garbage(batch, channels, height, width, border):
    """Blocks for an output: their interior is overwritten, and nothing else."""
    out = empty_blocks(batch, channels, height, width, border)
    interior(out).fill_(float("nan"))
    return out


def interior(x):
    _, _, height, width, _ = x.data.shape
    return x.data[:, :, x.border : height - x.border, x.border : width - x.border]


def border_is_zero(x):
    whole = x.data.clone()
    interior(Blocks(whole, x.batch, x.border)).zero_()
    return bool((whole == 0).all())


def check_close(out, expected, magnitude):
    """`magnitude`: the sum of the absolute values that were added up."""
    assert border_is_zero(out)
    got = kernels.unpack_output(out)
    assert got.shape == expected.shape
    close = (got - expected).abs() <= 1e-5 * magnitude + 1e-30
    assert bool((close | (got == expected)).all())  # equal infinities have no difference


def same_for_all_threads(call, **size):
    """The output of a call that is given where to write, in every instruction set: the same bits on 1 to 3 threads."""
    for instruction_set in INSTRUCTION_SETS:
        outputs = []
        for threads in (1, 2, 3):
            with configured(instruction_set, threads):
                outputs.append(call(with_garbage(**size)))
        assert all(torch.equal(out.data.view(torch.int32), outputs[0].data.view(torch.int32)) for out in outputs)
        yield outputs[0]


# --- Layout ---


@arbitrary
@hypothesis.given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.integers(0, 9)
)
def test_packing_and_unpacking(batch, channels, height, width, border, seed):
    generator.manual_seed(seed)
    x = random(batch, channels, height, width)
    for strided in (x, x.contiguous(memory_format=torch.channels_last), x.flip(3).mT.contiguous().mT.flip(3)):
        for out in same_for_all_threads(
            lambda out, x=strided: kernels.pack_input(x, out),
            batch=batch, channels=channels, height=height, width=width, border=border,
        ):  # fmt: skip
            assert border_is_zero(out)
            image = interior(out).permute(0, 4, 1, 2, 3).flatten(0, 1)
            assert torch.equal(image[:batch], x) and not image[batch:].any()
            assert torch.equal(kernels.unpack_output(out), x)


def test_a_slice_of_the_channels():
    whole = empty_blocks(20, 7, 3, 3, 1)
    x = random(20, 4, 3, 3)
    part = kernels.pack_input(x, Blocks(whole.data[:, 2:6], 20, 1))
    assert torch.equal(kernels.unpack_output(part), x)
    expected = torch.cat([torch.zeros(20, 2, 3, 3), x, torch.zeros(20, 1, 3, 3)], dim=1)
    assert torch.equal(kernels.unpack_output(whole), expected)


# --- Convolutions ---


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
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    convolution = Convolution(draw(st.integers(1, 14)), draw(st.sampled_from([1, 2, 5, 97])), (3, 3), padding=padding)
    return convolution, *(max(1, 3 - 2 * p) + draw(st.integers(0, 12)) for p in padding)


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

    check_convolution(packed, **given)


@hypothesis.settings(arbitrary, max_examples=25)
@hypothesis.given(problem=winograd_convolutions(), **around)
def test_winograd_convolution(**given):
    def packed(weight, convolution, x, out):
        yield lambda: packing.pack_winograd_filters(weight, convolution)

    check_convolution(packed, **given, tile=True)


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
            pack(), blocks, out, scale=scale, bias=bias, residual=residual_blocks, activation=activation
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
        packing.pack_winograd_filters(weight, convolution),
        packing.pack_filters(weight, convolution, blocks),
    ):
        out = in_blocks(added)
        check_close(kernels.convolution(filters, blocks, out, residual=out, activation="relu"), expected, 30)
    whole = empty_blocks(20, 9, 9, 9)
    out, shifted = Blocks(whole.data[:, :4], 20, 0), Blocks(whole.data[:, 3:7], 20, 0)
    with fails(ValueError, "out", "overlap residual"):
        kernels.convolution(filters, blocks, out, residual=shifted)
    kernels.convolution(filters, blocks, out, residual=Blocks(whole.data[:, 4:8], 20, 0))


def test_packed_filters():
    """The entries in the order of the weights, those of a block of input channels together; zeros are left out."""
    weight = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[-0.0, 0.0], [0.0, 3.0]]])[:, :, None]
    x = empty_blocks(1, 2, 4, 5, 1)
    convolution = Convolution(2, 2, (1, 2))
    channel = 6 * 7 * 16
    for channels_per_block, starts, order in ((2, [0, 2, 3], [0, 1, 2]), (1, [0, 1, 1, 2, 3], [0, 1, 2])):
        filters = packing.pack_filters(weight, convolution, x, channels_per_block)
        values, offsets = filters.entries[:, 0], filters.entries.view(torch.int32)[:, 1]
        assert filters.start.tolist() == starts
        assert values[order].tolist() == [1, 2, 3] and offsets[order].tolist() == [16, channel, channel + 16]


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
            filters = packing.pack_winograd_filters(weight, convolution)
            out = kernels.convolution(filters, blocks, empty_blocks(3, 3, 5, 5), activation="relu")
            found = kernels.unpack_output(out).isnan()  # and may spread to the 4 x 4 pixels that are computed together
            assert bool(found[expected].all()) and not found[[0, 2]].any()


def test_winograd_is_for_windows_of_3_with_stride_1():
    for convolution in (
        Convolution(4, 4, (3, 1)),
        Convolution(4, 4, (3, 3), stride=(1, 2)),
        Convolution(4, 4, (3, 3), dilation=(2, 1)),
        Convolution(4, 4, (3, 3), groups=2),
    ):
        weight = random(*convolution.weight_shape)
        with fails(ValueError, "3 x 3 windows"):
            packing.pack_winograd_filters(weight, convolution)


def test_pack_takes_what_is_fastest():
    """Few weights one by one; of windows of 3 x 3 with stride 1 all, by Winograd's algorithm; else all as they are."""

    def packed(density, **options):
        convolution = Convolution(64, 64, **options)
        weight = random(*convolution.weight_shape) * (
            torch.rand(convolution.weight_shape, generator=generator) < density
        )
        out = empty_blocks(16, 64, *convolution.output_size(16, 16))
        return type(packing.pack(weight, convolution, empty_blocks(16, 64, 16, 16, 1), out))

    window = dict(kernel=(3, 3), padding=(1, 1))
    assert packed(0.05, **window) is packed(0.05, stride=(2, 2), **window) is packing.SparseFilters
    assert packed(1, **window) is packed(0.6, **window) is packing.WinogradFilters
    assert packed(1, stride=(2, 2), **window) is packed(1, kernel=(1, 1)) is packing.DenseFilters


# --- Patches ---


@arbitrary
@hypothesis.given(
    batch=st.integers(1, 9),
    image=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    patches=st.sampled_from([(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (16, 1), (1, 16)]),
    border=st.integers(0, 4),
    larger=st.integers(0, 2),
)
def test_patches(batch, image, patches, border, larger):
    """The border holds the neighbours' pixels, what lies outside the image is zero, and nothing is lost."""
    x = random(batch, 3, *image)
    patch = tuple(-(-n // m) + larger for n, m in zip(image, patches, strict=True))
    around = [border, border + patches[1] * patch[1] - image[1], border, border + patches[0] * patch[0] - image[0]]
    padded = F.pad(x, around)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            blocks = empty_blocks(batch, 3, *image, border, patches=patches, patch=patch)
            blocks.data[:] = float("nan")
            kernels.pack_input(x, blocks)
            assert blocks.shape == x.shape and torch.equal(kernels.unpack_output(blocks), x)
            for image_index, row, column in itertools.product(range(batch), range(patches[0]), range(patches[1])):
                lane = (image_index * patches[0] + row) * patches[1] + column
                top, left = row * patch[0], column * patch[1]
                window = padded[image_index, :, top : top + patch[0] + 2 * border, left : left + patch[1] + 2 * border]
                assert torch.equal(blocks.data[lane // 16, :, :, :, lane % 16], window)


def test_errors_of_patches():
    x = empty_blocks(2, 2, 8, 8, 1, patches=(4, 2))
    convolution = Convolution(2, 2, (3, 3), padding=(1, 1))
    filters = packing.pack_filters(random(2, 2, 3, 3), convolution, x)
    with fails(ValueError, "(4, 2) patches", "(2, 4)"):
        kernels.convolution(filters, x, empty_blocks(2, 2, 8, 8, patches=(2, 4)))
    wide = Convolution(2, 2, (5, 5))
    with fails(ValueError, "border of x is 1", "(4, 4)"):
        filters = packing.pack_filters(random(2, 2, 5, 5), wide, x)
        kernels.convolution(filters, x, empty_blocks(2, 2, 4, 4, patches=(4, 2), patch=(2, 4)))
    with fails(ValueError, "3 x 1 patches"):
        empty_blocks(2, 2, 8, 8, patches=(3, 1))
    with fails(ValueError, "cover"):
        empty_blocks(2, 2, 8, 8, patches=(2, 2), patch=(3, 4))
    with fails(ValueError, "must not be cut"):
        kernels.channel_statistics(x)
    with fails(ValueError, "overlap"):
        kernels.average_pool(x, x, (3, 3), (1, 1), (1, 1))
    with fails(ValueError, "must be cut into"):
        kernels.scale_shift(x, empty_blocks(2, 2, 8, 8))


# --- The other operations ---

sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13))


@arbitrary
@hypothesis.given(sizes, st.integers(0, 2), st.sampled_from([0.0, 1.0, 3e4]), st.integers(0, 9))
def test_channel_statistics(size, border, mean, seed):
    """Far from zero, too, where a sum of squares in float32 would keep nothing of the variance."""
    hypothesis.assume(size[0] * size[2] * size[3] > 1)
    generator.manual_seed(seed)
    x = random(*size) + mean
    blocks = in_blocks(x, border)
    interior(blocks)[:, :, :, :, size[0] % 16 or 16 :][-1:] = float("nan")  # images that are none
    for instruction_set in INSTRUCTION_SETS:
        results = []
        for threads in (1, 2, 3):
            with configured(instruction_set, threads):
                results.append(torch.stack(kernels.channel_statistics(blocks)))
        assert all(torch.equal(result, results[0]) for result in results)
        variance, average = torch.var_mean(x.double(), dim=(0, 2, 3))
        assert torch.allclose(results[0][0], average, rtol=1e-6, atol=1e-6)
        assert torch.allclose(results[0][1], variance, rtol=1e-5, atol=1e-8)


@arbitrary
@hypothesis.given(
    sizes, st.integers(0, 2), st.tuples(*[st.booleans()] * 3), st.sampled_from(list(MODULES)), st.integers(0, 9)
)
def test_scale_shift(size, border, has, activation, seed):
    generator.manual_seed(seed)
    x, scale, shift, residual = random(*size), random(size[1]), random(size[1]), random(*size)
    scale, shift, residual = (t if given else None for t, given in zip((scale, shift, residual), has, strict=True))
    expected = x.double() if scale is None else x.double() * scale[:, None, None]
    expected = expected if shift is None else expected + shift[:, None, None]
    expected = MODULES[activation](expected if residual is None else expected + residual)
    blocks, added = in_blocks(x, 1), None if residual is None else in_blocks(residual, 2)
    call = lambda out: kernels.scale_shift(  # noqa: E731
        blocks, out, scale=scale, shift=shift, residual=added, activation=activation
    )
    shape = dict(zip(("batch", "channels", "height", "width"), size, strict=True))
    for out in same_for_all_threads(call, **shape, border=border):
        check_close(out, expected, 10)
    check_close(call(blocks), expected, 10)


@arbitrary
@hypothesis.given(
    sizes,
    *[st.tuples(st.integers(1, 4), st.integers(1, 4))] * 2,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
def test_pools(size, kernel, stride, padding, dilation, ceil_mode, count_padding, seed):
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    generator.manual_seed(seed)
    x = random(*size) - 1  # the padding's zeros would win often
    blocks = in_blocks(x, seed % 3)

    def fits(dilation):
        sizes = zip(size[2:], padding, dilation, kernel, strict=True)
        return all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in sizes)

    def check(expected, call):
        shape = dict(zip(("batch", "channels", "height", "width"), expected.shape, strict=True))
        for out in same_for_all_threads(call, **shape, border=1):
            check_close(out, expected, 10)

    if fits(dilation):
        check(
            F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode).double(),
            lambda out: kernels.max_pool(blocks, out, kernel, stride, padding, dilation),
        )
    if fits((1, 1)):
        check(
            F.avg_pool2d(x.double(), kernel, stride, padding, ceil_mode, count_padding),
            lambda out: kernels.average_pool(blocks, out, kernel, stride, padding, count_padding=count_padding),
        )
    check(x.double().mean((2, 3), keepdim=True), lambda out: kernels.global_average_pool(blocks, out))


# --- Errors ---


def fails(error, *words):
    return pytest.raises(error, match=".*".join(map(re.escape, words)))


def test_errors_of_blocks():
    with fails(TypeError, "float32", "float64"):
        Blocks(torch.zeros(1, 2, 3, 3, 16, dtype=torch.float64), 4, 0)
    with fails(ValueError, "16"):
        Blocks(torch.zeros(1, 2, 3, 3, 8), 4, 0)
    with fails(ValueError, "border of 2"):
        Blocks(torch.zeros(1, 2, 3, 5, 16), 4, 2)
    with fails(ValueError, "17 images"):
        Blocks(torch.zeros(1, 2, 3, 3, 16), 17, 0)
    with fails(ValueError, "slice of the channels"):
        Blocks(torch.zeros(1, 2, 3, 5, 16)[:, :, :2, 1:], 16, 0)
    with fails(ValueError, "64 bytes"):
        Blocks(torch.zeros(1 + 2 * 9 * 16)[1:].view(1, 2, 3, 3, 16), 16, 0)
    with fails(RuntimeError, "grad"):
        Blocks(torch.zeros(1, 2, 3, 3, 16, requires_grad=True), 16, 0)


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


def test_errors_of_pools():
    x = empty_blocks(5, 2, 6, 6)
    with fails(ValueError, "outputs, not 4"):
        kernels.max_pool(x, empty_blocks(5, 2, 4, 3), (2, 2), (2, 2))
    with fails(ValueError, "images and channels"):
        kernels.average_pool(x, empty_blocks(5, 3, 3, 3), (2, 2), (2, 2))
