"""Activations in blocks and in patches: nothing is lost, and the border is what it has to be."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from lpk.sparse import kernels, packing
from lpk.sparse.blocks import Blocks, empty_blocks
from lpk.sparse.packing import Convolution
from tests.sparse.engine import (
    INSTRUCTION_SETS,
    arbitrary,
    border_is_zero,
    configured,
    fails,
    generator,
    interior,
    random,
    same_for_all_threads,
)


@arbitrary
@hypothesis.given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.integers(0, 9)
)
def test_packing_and_unpacking(batch, channels, height, width, border, seed):
    generator.manual_seed(seed)
    x = random(batch, channels, height, width)
    last, slice_of_rows = x.contiguous(memory_format=torch.channels_last), F.pad(x, (0, 3))[..., :width]
    for strided in (x, last, slice_of_rows, x.flip(3).mT.contiguous().mT.flip(3)):
        for out in same_for_all_threads(
            lambda out, x=strided: kernels.pack_input(x, out),
            batch=batch, channels=channels, height=height, width=width, border=border,
        ):  # fmt: skip
            assert border_is_zero(out)
            image = interior(out).permute(0, 4, 1, 2, 3).flatten(0, 1)
            assert torch.equal(image[:batch], x) and not image[batch:].any()
            for last in (False, True):
                unpacked = kernels.unpack_output(out, last=last)
                assert torch.equal(unpacked, x)
                assert (unpacked.permute(0, 2, 3, 1) if last else unpacked).is_contiguous()


def test_a_slice_of_the_channels():
    whole = empty_blocks(20, 7, 3, 3, 1)
    x = random(20, 4, 3, 3)
    part = kernels.pack_input(x, Blocks(whole.data[:, 2:6], 20, 1))
    assert torch.equal(kernels.unpack_output(part), x)
    expected = torch.cat([torch.zeros(20, 2, 3, 3), x, torch.zeros(20, 1, 3, 3)], dim=1)
    assert torch.equal(kernels.unpack_output(whole), expected)


@arbitrary
@hypothesis.given(
    batch=st.integers(1, 9),
    image=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    patches=st.sampled_from([(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (16, 1), (1, 16)]),
    border=st.integers(0, 4),
    larger=st.integers(0, 2),
    channels=st.integers(1, 20),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_patches(batch, image, patches, border, larger, channels, layout):
    """The border holds the neighbours' pixels, what lies outside the image is zero, and nothing is lost."""
    x = random(batch, channels, *image)
    patch = tuple(-(-n // m) + larger for n, m in zip(image, patches, strict=True))
    around = [border, border + patches[1] * patch[1] - image[1], border, border + patches[0] * patch[0] - image[0]]
    padded = F.pad(x, around)
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            blocks = empty_blocks(batch, channels, *image, border, patches=patches, patch=patch)
            blocks.data[:] = float("nan")
            kernels.pack_input(x.contiguous(memory_format=layout), blocks)
            assert blocks.shape == x.shape
            assert all(torch.equal(kernels.unpack_output(blocks, last=last), x) for last in (False, True))
            for image_index, row, column in itertools.product(range(batch), range(patches[0]), range(patches[1])):
                lane = (image_index * patches[0] + row) * patches[1] + column
                top, left = row * patch[0], column * patch[1]
                window = padded[image_index, :, top : top + patch[0] + 2 * border, left : left + patch[1] + 2 * border]
                assert torch.equal(blocks.data[lane // 16, :, :, :, lane % 16], window)


CUTS = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 4), (16, 1), (1, 16)]


@arbitrary
@hypothesis.given(
    batch=st.integers(1, 20),
    image=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    cuts=st.tuples(st.sampled_from(CUTS), st.sampled_from(CUTS)),
    larger=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    borders=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.integers(1, 5),
    turned=st.booleans(),
)
def test_relayout(batch, image, cuts, larger, borders, channels, turned):
    """Between any two cuts, and to images of another height and width; what is no pixel of an image stays."""
    x, images = random(batch, channels, *image), (image, image[::-1] if turned else image)
    made = []
    for size, patches, more, border in zip(images, cuts, larger, borders, strict=True):
        patch = None if patches == (1, 1) else tuple(-(-n // m) + more for n, m in zip(size, patches, strict=True))
        made.append(empty_blocks(batch, channels, *size, border, patches=patches, patch=patch))
    blocks, out = made
    kernels.pack_input(x, blocks)
    for threads in (1, 2, 3):
        with configured(threads=threads):
            out.data[:] = float("nan")
            kernels.relayout(blocks, out)
        moved = kernels.unpack_output(out)
        assert torch.equal(moved, x.reshape(moved.shape))
        others = -batch % 16 * x[0].numel() if cuts == ((1, 1), (1, 1)) else 0  # of lanes without image
        assert out.data.isfinite().sum() == x.numel() + others


def test_errors_of_relayout():
    x = empty_blocks(2, 3, 4, 6, patches=(2, 2))
    for shape in [(3, 3, 4, 6), (2, 4, 4, 6), (2, 3, 4, 5)]:
        with fails(ValueError, "number of pixels", "[2, 3, 4, 6]", str(list(shape))):
            kernels.relayout(x, empty_blocks(*shape))
    with fails(ValueError, "stride (2, 3)", "[2, 3, 2, 3]"):
        kernels.relayout(x, empty_blocks(2, 3, 2, 3), (2, 3))
    with fails(ValueError, "overlap"):
        kernels.relayout(x, Blocks(x.data, 2, 0, (2, 2), (4, 6)))


@pytest.mark.parametrize("batch", [1, 5, 16, 33])
def test_relayout_with_a_stride(batch):
    for stride, cuts in itertools.product(
        [(2, 2), (1, 3)], itertools.product([(1, 1), (2, 2), (4, 4), (2, 8)], repeat=2)
    ):
        x = random(batch, 3, 17, 19)
        every = x[:, :, :: stride[0], :: stride[1]]
        blocks = kernels.pack_input(x, empty_blocks(*x.shape, 1, patches=cuts[0]))
        for instruction_set in INSTRUCTION_SETS:
            with configured(instruction_set, 2):
                out = kernels.relayout(blocks, empty_blocks(*every.shape, 1, patches=cuts[1]), stride)
                assert torch.equal(kernels.unpack_output(out), every)


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


def test_errors_of_blocks():
    with fails(TypeError, "float32", "float64"):
        Blocks(torch.zeros(1, 2, 3, 3, 16, dtype=torch.float64), 4, 0)
    with fails(ValueError, "16"):
        Blocks(torch.zeros(1, 2, 3, 3, 8), 4, 0)
    with fails(ValueError, "border of 2"):
        Blocks(torch.zeros(1, 2, 3, 5, 16), 4, 2)
    with fails(ValueError, "17 images"):
        Blocks(torch.zeros(1, 2, 3, 3, 16), 17, 0)
    with fails(ValueError, "pixels in rows"):
        Blocks(torch.zeros(1, 2, 5, 3, 16).transpose(2, 3), 16, 0)
    with fails(ValueError, "do not overlap"):
        Blocks(torch.zeros(288).as_strided((1, 2, 3, 3, 16), (288, 32, 64, 16, 1)), 16, 0)
    with fails(ValueError, "64 bytes"):
        Blocks(torch.zeros(1 + 2 * 9 * 16)[1:].view(1, 2, 3, 3, 16), 16, 0)
    with fails(RuntimeError, "grad"):
        Blocks(torch.zeros(1, 2, 3, 3, 16, requires_grad=True), 16, 0)
