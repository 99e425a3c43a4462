"""The engine's other operations against PyTorch's in float64, the same bits for every number of threads."""

from itertools import pairwise

import hypothesis
import hypothesis.strategies as st
import torch
import torch.nn.functional as F

from lpk.sparse import kernels
from lpk.sparse.blocks import empty_blocks
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
    interior,
    random,
    same_for_all_threads,
)

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
        blocks, out, scale=scale, shift=shift, residual=added, activation=activation, slope=SLOPE
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


def test_seconds():
    """Operations that are timed run as they do else, also where blocks are left over; each takes its time."""
    x = in_blocks(random(16 * 5, 3, 9, 8))
    outs = [empty_blocks(*x.shape) for _ in range(3)]
    operations = [kernels.prepare_scale_shift(a, b, activation="tanh") for a, b in pairwise([x, *outs])]
    for threads in (1, 2, 3):
        with configured(threads=threads):
            kernels.run(operations)
            expected = outs[-1].data.clone()
            outs[-1].data.zero_()
            taken = kernels.seconds(operations, threads)
        assert torch.equal(outs[-1].data, expected)
        assert len(taken) == 3 and all(0 < some < 1 for some in taken)


def test_errors_of_pools():
    x = empty_blocks(5, 2, 6, 6)
    with fails(ValueError, "outputs, not 4"):
        kernels.max_pool(x, empty_blocks(5, 2, 4, 3), (2, 2), (2, 2))
    with fails(ValueError, "images and channels"):
        kernels.average_pool(x, empty_blocks(5, 3, 3, 3), (2, 2), (2, 2))
