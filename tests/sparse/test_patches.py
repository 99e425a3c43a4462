"""Images cut into patches: the network computes what it did, and lanes compute little in vain."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from lpk.sparse.blocks import IMAGES, block_count
from lpk.sparse.patches import best_cut, finest_cut
from tests.sparse.networks import same


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(
    size=st.tuples(st.integers(5, 21), st.integers(5, 21)),
    layers=st.lists(
        st.tuples(
            st.sampled_from(["conv", "depthwise", "max", "average"]),
            st.integers(1, 4),  # kernel
            st.integers(1, 3),  # stride
            st.integers(0, 2),  # padding
            st.integers(1, 2),  # dilation
            st.booleans(),  # windows that reach beyond the image (ceil_mode)
            st.booleans(),  # ReLU
        ),
        min_size=1,
        max_size=4,
    ),
    batch=st.integers(1, 18),
)
def test_few_images(size, layers, batch):
    """Images are cut into patches wherever that comes out even, and put together again where not."""
    network, shape = nn.Sequential(), torch.Size([1, 3, *size])
    for kind, kernel, stride, padding, dilation, ceil, relu in layers:
        if kind in ("conv", "depthwise"):
            layer = nn.Conv2d(3, 3, kernel, stride, padding, dilation, groups=3 if kind == "depthwise" else 1)
        elif kind == "max":
            layer = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), dilation, ceil_mode=ceil)
        else:
            layer = nn.AvgPool2d(kernel, stride, min(padding, kernel // 2), ceil_mode=ceil)
        try:
            outputs = layer(torch.zeros(shape))
        except RuntimeError:  # nothing is left of the image
            break
        if not outputs.isfinite().all():  # a window that sees nothing of the image
            break
        shape = outputs.shape
        network.append(layer)
        if relu:
            network.append(nn.ReLU())
    hypothesis.assume(len(network))
    torch.manual_seed(0)
    same(network.eval(), torch.randn(batch, 3, *size))


@pytest.mark.parametrize("before", [nn.Identity(), nn.ReLU()])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d, partial(nn.AvgPool2d, count_include_pad=False)])
def test_few_images_whose_last_windows_reach_beyond_them(pool, kernel, before):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), before, pool(kernel, kernel, ceil_mode=True), nn.Conv2d(4, 4, 3, padding=1)
    for batch in (1, 2, 4, 8):
        same(nn.Sequential(*layers).eval(), torch.randn(batch, 3, 11, 16))


def computed(cut, batch):
    """Pixels of all lanes."""
    (rows, columns), (high, wide) = cut
    return IMAGES * block_count(batch, (rows, columns)) * high * wide


@pytest.mark.parametrize("height", [1, 5, 7, 14, 31, 56])
@pytest.mark.parametrize("width", [1, 7, 13, 28, 112])
def test_lanes_compute_little_in_vain(height, width):
    """A tenth more than the least; of small images and of rows more, whose borders and number of blocks count, too."""
    sizes = [2**i for i in range(5)]
    possible = [(rows, columns) for rows in sizes for columns in sizes if rows <= height and columns <= width]
    for batch in range(1, 33):
        (rows, columns), patch = best_cut(height, width, batch)
        assert IMAGES % (rows * columns) == 0 and patch == (-(-height // rows), -(-width // columns))
        every = [((r, c), (-(-height // r), -(-width // c))) for r, c in possible if r * c <= IMAGES]
        least = min(computed(cut, batch) for cut in every)
        share = 1.1 if height * width > 100 and min(height, width) > 1 else 1.4
        assert computed(best_cut(height, width, batch), batch) <= share * least


def test_blocks_hold_few_large_images_and_many_small_ones():
    patches = {size: best_cut(size, size, 16)[0] for size in (112, 56, 28, 14, 7, 4)}
    assert patches == {112: (4, 4), 56: (4, 4), 28: (4, 4), 14: (2, 2), 7: (1, 1), 4: (1, 1)}
    assert best_cut(14, 14, 1) == ((8, 2), (2, 7))  # of (4, 4) patches a fourth part would lie outside the image
    assert finest_cut(1, 128) == ((1, 16), (1, 8)) and finest_cut(2, 3) == ((2, 2), (1, 2))
