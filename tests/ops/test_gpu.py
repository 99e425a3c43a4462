"""The operations on a GPU, compiled and Triton's, against the CPU's bits."""

import itertools

import pytest
import torch

import lpk
from lpk import _core, ops
from lpk.ops import gpu
from tests.ops.vectors import vector
from tests.reference import bits

GPU = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here"),
]
ALPHAS = [0.05, 0.3, 0.5, 0.95]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["cuda", "triton"])
def backend(request, monkeypatch):
    if request.param == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr(_core, "cuda_compiled", False)
    elif not _core.cuda_compiled:
        pytest.skip("the CUDA kernels were not compiled")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "equal", "mostly-zero", "ties", "sorted", "denormal"])
@pytest.mark.parametrize("n", [0, 1, 1025, 300_007, 5_000_011])
def test_same_bits_as_the_cpu(backend, n, kind, dtype):
    a, b = vector(kind, n, 0, dtype), vector(kind, n, 1, dtype)
    on_a, on_b = a.cuda(), b.cuda()
    assert torch.equal(bits(ops.interpolate(on_a, on_b, 0.3).cpu()), bits(ops.interpolate(a, b, 0.3)))
    for keep in {0, min(1, n), n // 5, n}:
        for ours, expected in zip(
            ops.interpolate_threshold(on_a, on_b, ALPHAS, keep), ops.interpolate_threshold(a, b, ALPHAS, keep),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(ours.cpu(), expected), keep
        pruned = ops.interpolate_prune(on_a, on_b, 0.3, keep).cpu()
        assert torch.equal(bits(pruned), bits(ops.interpolate_prune(a, b, 0.3, keep))), keep
        rows = ops.interpolate_prune_all(on_a, on_b, ALPHAS, keep).cpu()
        assert torch.equal(bits(rows), bits(ops.interpolate_prune_all(a, b, ALPHAS, keep))), keep
        assert torch.equal(ops.magnitude_mask(on_a, keep).cpu(), ops.magnitude_mask(a, keep)), keep
    ops.raise_if_not_finite()


def test_in_place_and_device_scalars(backend):
    a, b = vector("normal", 70_001, 0, torch.float32), vector("normal", 70_001, 1, torch.float32)
    expected = ops.interpolate_prune(a, b, 0.3, 9000)
    on_a, on_b, alpha = a.cuda(), b.cuda(), torch.tensor(0.3).cuda()
    values, last = ops.interpolate_threshold(on_a, on_b, alpha.reshape(1), 9000)
    ops.interpolate_prune(on_a, on_b, alpha, 9000, threshold=(values[0], last[0]), out=on_a)
    assert torch.equal(bits(on_a.cpu()), bits(expected))


def test_captured_in_a_graph_and_replayed_on_new_weights(backend):
    a, b = vector("normal", 200_003, 0, torch.float32), vector("normal", 200_003, 1, torch.float32)
    on_a, on_b, alphas = a.cuda(), b.cuda(), torch.tensor(ALPHAS).cuda()
    out = torch.empty_like(on_a)

    def run():
        values, last = ops.interpolate_threshold(on_a, on_b, alphas, 30_000)
        ops.interpolate_prune(on_a, on_b, alphas[1], 30_000, threshold=(values[1], last[1]), out=out)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    on_a.copy_(a.flip(0))
    graph.replay()
    assert torch.equal(bits(out.cpu()), bits(ops.interpolate_prune(a.flip(0), b, ALPHAS[1], 30_000)))


def test_results_do_not_vary(backend):
    a, b = vector("ties", 3_000_001, 0, torch.float32).cuda(), vector("ties", 3_000_001, 1, torch.float32).cuda()
    first = ops.interpolate_threshold(a, b, ALPHAS, 500_000)
    for _ in range(20):
        again = ops.interpolate_threshold(a, b, ALPHAS, 500_000)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_searches_on_several_streams_do_not_wait_for_each_other_for_ever(backend):
    """The blocks of a search wait for each other: all of them must come to run, whatever else does."""
    vectors = [vector("normal", 3_000_001, seed, torch.float32) for seed in range(4)]
    expected = [ops.interpolate_threshold(a, a.flip(0), ALPHAS, 500_000) for a in vectors]
    on_gpu = [(a.cuda(), a.flip(0).cuda()) for a in vectors]
    streams, found = [torch.cuda.Stream() for _ in vectors], []
    torch.cuda.synchronize()
    for _ in range(10):
        found = []
        for stream, (a, b) in zip(streams, on_gpu, strict=True):
            with torch.cuda.stream(stream):
                found.append(ops.interpolate_threshold(a, b, ALPHAS, 500_000))
    torch.cuda.synchronize()
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(x.cpu(), y) for x, y in zip(ours, theirs, strict=True))


def test_a_search_captured_in_a_graph_with_its_pruning(backend):
    """Short vectors in one launch, long ones in two; and an output that is an input."""
    for n in (200_003, 5_000_011):
        a, b = vector("normal", n, 0, torch.float32), vector("normal", n, 1, torch.float32)
        on_a, on_b = a.cuda(), b.cuda()
        ops.interpolate_prune(on_a.clone(), on_b, 0.3, n // 5)  # Triton compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.interpolate_prune(on_a, on_b, 0.3, n // 5, out=on_a)
        expected = a
        for _ in range(2):
            graph.replay()
            expected = ops.interpolate_prune(expected, b, 0.3, n // 5)
            assert torch.equal(bits(on_a.cpu()), bits(expected))


def test_numbers_on_the_device_may_have_strides(backend):
    a, b = vector("normal", 70_001, 0, torch.float32).cuda(), vector("normal", 70_001, 1, torch.float32).cuda()
    alphas = torch.linspace(0, 1, 6)
    for strided in (alphas[::2], alphas[:1].expand(3)):
        values, last = ops.interpolate_threshold(a, b, strided.cuda(), 9000)
        expected = ops.interpolate_threshold(a.cpu(), b.cpu(), strided.contiguous(), 9000)
        assert torch.equal(values.cpu(), expected[0]) and torch.equal(last.cpu(), expected[1])


@pytest.mark.parametrize("keep", [1, 4000, 4999])
def test_bad_weights_lead_nowhere(backend, keep):
    """The counts are wrong then: the search must neither leave the vectors nor go on for ever."""
    for value in (float("nan"), float("inf")):
        for share in (0.0002, 0.5, 1.0):
            x = torch.zeros(5000).cuda()
            x[: int(5000 * share)] = value
            ops.magnitude_mask(x, keep)
            with pytest.raises(ValueError, match=r"\[0\]"):
                ops.raise_if_not_finite(torch.device("cuda"))


def test_bad_weights_are_told_afterwards(backend):
    a, b = torch.ones(5000).cuda(), torch.ones(5000).cuda()
    b[1234] = float("nan")
    ops.interpolate(a, b, 0.5)
    with pytest.raises(ValueError, match="1234"):
        ops.raise_if_not_finite()
    ops.raise_if_not_finite()
    assert gpu.first_bad(a.device).item() == gpu.NEVER


def test_pools_on_the_gpu(backend, tickets, network, validation, calibration):
    """Bounded and exhaustive searches agree there, too, and what they return lies on the CPU."""
    options = {"model": network, "validation": validation, "calibration": calibration, "progress": False}
    bounded, exhaustive = (lpk.pool(tickets, 3, device=GPU, search=s, **options) for s in ("bounded", "exhaustive"))
    assert bounded.settings["device"].startswith(str(GPU))
    assert bounded.settings["backend"] == "graph", bounded.settings["graph_problem"]
    accepted = [[(s.candidate, s.coefficient) for s in p.steps if s.accepted] for p in (bounded, exhaustive)]
    assert accepted[0] == accepted[1] and bounded.accuracy >= bounded.baseline_accuracy
    weights = bounded.flat.weights
    assert torch.equal(bits(weights), bits(exhaustive.flat.weights)) and not weights.is_cuda
    assert int(weights.count_nonzero()) <= tickets[3].keep


def test_imp_on_the_gpu(backend, network, validation):
    """Pruned weights stay zero under an optimizer, and the next masks are those of the CPU."""
    images, labels = (part.to(GPU) for part in validation)

    def train(model, start, stop):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(start, stop):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    tickets = lpk.imp(network.to(GPU), train, epochs=3, rounds=3, rewind=1, seed=0, progress=False)
    for before, after in itertools.pairwise(tickets):
        assert torch.equal(lpk.ops.magnitude_mask(before.flat.weights, after.keep), after.mask)
        assert not after.flat.weights[~after.mask].any()
