"""The forms of a convolution's weights, and which is taken."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lpk import _core
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import empty_blocks
from lpk.sparse.packing import Convolution
from tests.sparse.engine import INSTRUCTION_SETS, configured, fails, generator, in_blocks, random


def test_packed_filters():
    """The entries in the order of the weights, those of a block of input channels together; zeros are left out."""
    weight = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[-0.0, 0.0], [0.0, 3.0]]])[:, :, None]
    x = empty_blocks(1, 2, 4, 5, 1)
    convolution = Convolution(2, 2, (1, 2))
    channel = 7 * 16
    for channels_per_block, starts, order in ((2, [0, 2, 3], [0, 1, 2]), (1, [0, 1, 1, 2, 3], [0, 1, 2])):
        filters = packing.pack_filters(weight, convolution, x, channels_per_block)
        values, offsets = filters.entries[:, 0], filters.entries.view(torch.int32)[:, 1]
        assert filters.start.tolist() == starts
        assert values[order].tolist() == [1, 2, 3] and offsets[order].tolist() == [16, channel, channel + 16]


def test_gathered_filters():
    """Their offsets are into the gathered pixels; what few weights read, and images of few pixels, are not gathered."""
    convolution, x = Convolution(64, 3, (1, 1)), empty_blocks(16, 3, 8, 8, 1)
    weight = random(*convolution.weight_shape)
    filters = packing.pack_filters(weight, convolution, x, gathered=5)
    assert filters.entries.view(torch.int32)[:3, 1].tolist() == [0, 80, 160]
    with fails(ValueError, "gathered", "(3, 3)"):
        packing.pack_filters(random(64, 3, 3, 3), Convolution(64, 3, (3, 3)), x, gathered=5)

    def gathered(nonzeros, width):
        x, out = empty_blocks(16, 3, 1, width), empty_blocks(16, 64, 1, width)
        return packing.best_blocks(convolution, x, out, nonzeros)[1]

    assert gathered(96, 64) > 0 and gathered(4, 64) == gathered(96, 4) == 0


def test_winograd_is_for_windows_of_3_with_stride_1_and_of_7_with_stride_2():
    for convolution in (
        Convolution(4, 4, (7, 7)),
        Convolution(4, 4, (7, 7), stride=(2, 1)),
        Convolution(4, 4, (3, 3), stride=(2, 2)),
        Convolution(4, 4, (3, 1)),
        Convolution(4, 4, (3, 3), stride=(1, 2)),
        Convolution(4, 4, (3, 3), dilation=(2, 1)),
        Convolution(4, 4, (3, 3), groups=2),
    ):
        weight = random(*convolution.weight_shape)
        with fails(ValueError, "3 x 3 windows", "7 x 7 windows"):
            packing.pack_winograd_filters(weight, convolution, empty_blocks(16, 4, 8, 8))


costs_are_known = pytest.mark.skipif(
    _core.instruction_set() == "portable", reason="what is fastest was measured with AVX2 and AVX-512"
)


@costs_are_known
def test_pack_takes_what_is_fastest():
    """Few weights one by one; of windows of 3 x 3 with stride 1, or 7 x 7 with stride 2, all, by Winograd's algorithm;
    else all as they are. Those of depthwise layers, few or many, one channel after the other."""

    def packed(density, size=16, **options):
        convolution = Convolution(64, 64, **options)
        weight = random(*convolution.weight_shape) * (
            torch.rand(convolution.weight_shape, generator=generator) < density
        )
        out = empty_blocks(16, 64, *convolution.output_size(size, size))
        return type(packing.pack(weight, convolution, empty_blocks(16, 64, size, size, 3), out))

    window = dict(kernel=(3, 3), padding=(1, 1))
    sparse = packing.SparseFilters if _core.instruction_set() != "avx512" else packing.CompiledFilters
    assert packed(0.05, **window) is packed(0.05, stride=(2, 2), **window) is sparse
    assert packed(1, **window) is packed(0.6, **window) is packing.WinogradFilters
    assert packed(0.5, size=8, **window) is packing.WinogradFilters
    assert packed(1, kernel=(7, 7), stride=(2, 2), padding=(3, 3)) is packing.WinogradFilters
    assert packed(0.05, kernel=(7, 7), stride=(2, 2), padding=(3, 3)) is sparse
    assert packed(1, stride=(2, 2), **window) is packed(1, kernel=(1, 1)) is packing.DenseFilters
    for density in (0.05, 1):
        assert packed(density, groups=64, **window) is packing.DepthwiseFilters


@costs_are_known
def test_pack_knows_how_few_pixels_there_are():
    """Of single pixels, filters lie in the lanes; the fewer there are, the fewer weights are taken one by one."""

    def packed(density, batch):
        convolution = Convolution(512, 256, (1, 1))
        weight = random(512, 256, 1, 1) * (torch.rand(512, 256, 1, 1, generator=generator) < density)
        return type(packing.pack(weight, convolution, empty_blocks(batch, 256, 1, 1), empty_blocks(batch, 512, 1, 1)))

    assert packed(1, 1) is packed(1, 40) is packed(0.25, 1) is packing.LaneFilters
    assert packed(0.03, 1) is packed(0.25, 40) is packing.SparseFilters


WITHOUT_CODE = """
import ctypes, torch
from lpk import _core
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import empty_blocks
refused = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE: no memory becomes executable
convolution = packing.Convolution(9, 20, (3, 3))
x, weight = torch.randn(16, 20, 6, 6), torch.randn(9, 20, 3, 3) * (torch.rand(9, 20, 3, 3) < 0.1)
blocks, out = kernels.pack_input(x, empty_blocks(*x.shape)), empty_blocks(16, 9, 4, 4)
filters = packing.pack(weight, convolution, blocks, out)
kernels.convolution(filters, blocks, out)
expected = torch.nn.functional.conv2d(x.double(), weight.double())
torch.testing.assert_close(kernels.unpack_output(out).double(), expected, rtol=1e-4, atol=1e-4)
print(refused, type(filters).__name__, _core.compiles(convolution.handle, blocks.handle))
"""


def test_where_no_memory_becomes_executable_there_are_the_loops():
    done = subprocess.run([sys.executable, "-c", WITHOUT_CODE], capture_output=True, text=True, check=True)
    if done.stdout.startswith("False"):
        pytest.skip("the kernel can't refuse it")
    assert done.stdout.split() == ["True", "SparseFilters", "False"]


def test_filters_that_are_not_compiled():
    """What lies too far apart, and where there is another instruction set."""
    convolution, x = Convolution(3, 2, (3, 3), dilation=(2**21, 1)), empty_blocks(1, 2, 4, 4, 1)
    weight = random(*convolution.weight_shape)
    with fails(ValueError, "2 GiB"):
        packing.compile_filters(weight, convolution, x)
    with configured("portable"), fails(ValueError, "not portable"):
        packing.compile_filters(weight, Convolution(3, 2, (3, 3)), x)


def test_winograd_on_one_tile():
    """More filters lie together where there is but one tile, and filters of another instruction set are refused."""
    convolution = Convolution(30, 5, (3, 3), padding=(1, 1))
    x, weight = random(16, 5, 4, 3), random(30, 5, 3, 3)
    expected = F.conv2d(x.double(), weight.double(), padding=1).float()
    for instruction_set in INSTRUCTION_SETS:
        with configured(instruction_set):
            blocks, out = in_blocks(x, 1), empty_blocks(16, 30, 4, 3)
            filters = packing.pack_winograd_filters(weight, convolution, out)
            kernels.convolution(filters, blocks, out)
            torch.testing.assert_close(kernels.unpack_output(out), expected, rtol=1e-4, atol=1e-4)
        assert filters.together == (24 if instruction_set == "avx512" else 6)
    if "avx512" in INSTRUCTION_SETS:
        with configured("avx512"):
            filters = packing.pack_winograd_filters(weight, convolution, out)
        with configured("avx2"), fails(ValueError, "another instruction set"):
            kernels.convolution(filters, blocks, out)
