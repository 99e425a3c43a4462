"""Fits lpk/sparse/costs.py: what the operations of networks take in PyTorch, and the engine's, on one thread.

    python -m bench.sparse_costs [--networks resnet50,timm:vit_small_patch16_224] [--batches 1,4] [--cases]

Prints for each kind the nanoseconds of a call, a product, a byte and a byte beyond lpk.sparse.costs.NEAR that fit the
measured times best, and by which factor the fit is off, in the mean and at most. --cases prints each case with its time
and what the fit says.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import Tensor, fx
from torch.nn import functional as F

from lpk.networks.tracing import trace
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import Blocks, empty_blocks
from lpk.sparse.costs import EFFORT, NEAR, Cost, work_of
from lpk.sparse.dense import InPyTorch
from lpk.sparse.results import BATCH, Results, tensors
from lpk.sparse.steps import Heads


class Case(NamedTuple):
    what: str
    call: Callable[[], object]
    products: float
    bytes: float


def nanoseconds(call: Callable[[], object], least: float = 0.03) -> float:
    """Of the fastest of some calls, by the processor's clock: others may be at work, too."""
    call()
    times: list[float] = []
    while sum(times) < least or len(times) < 5:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1e9 * min(times)


NETWORKS = (
    "resnet50", "efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf", "shufflenet_v2_x1_0", "densenet121",
    "resnext50_32x4d", "mnasnet1_0", "convnext_tiny", "timm:vit_small_patch16_224", "timm:mixer_s32_224", "vit_b_32",
)  # fmt: skip


class Timed(fx.Interpreter):
    """Notes the nanoseconds that each node takes among the others: what it reads is no longer in the nearest cache."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.taken: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.thread_time()
        result = super().run_node(n)
        taken = 1e9 * (time.thread_time() - start)
        self.taken[n.name] = min(taken, self.taken.get(n.name, taken))
        return result


def pytorch(name: str, batch: int) -> Iterator[tuple[str, Case, float]]:
    """The kind, the case and the time of what a network does in lpk.sparse.dense."""
    source = timm.create_model if name.startswith("timm:") else torchvision.models.get_model
    network = source(name.removeprefix("timm:")).eval().requires_grad_(False)
    graph = trace(network)
    Results(graph).run(torch.randn(BATCH, 3, 224, 224))
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    made = InPyTorch(network)
    made(x)
    assert made.network is not None
    timed = Timed(made.network)
    for _ in range(8):
        timed.run(x)
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node.name not in timed.taken:
            continue
        inputs = [x for n in node.all_input_nodes for x in tensors(n.meta["result"])]
        work = work_of(node, node.meta["result"], inputs, modules.get(str(node.target)), batch)
        with_effort = any(
            reader.name not in timed.taken
            and work_of(reader, reader.meta["result"], inputs, modules.get(str(reader.target))).products
            for reader in node.users
        )
        if not with_effort:
            kind = "grouped" if work.kind == "convolution" and work.groups > 1 else work.kind
            what = f"{name} {batch} {node.name} {list(inputs[0].shape) if inputs else ''}"
            yield kind, Case(what, lambda: None, work.products, work.bytes), timed.taken[node.name]


def alone() -> Iterator[tuple[str, Case]]:
    """What hardly occurs by itself in these networks."""
    for tokens, width in ((49, 768), (197, 384), (784, 192), (3136, 96)):
        x = torch.randn(4, tokens, width)
        for function in (F.gelu, F.silu, torch.tanh):
            effort = EFFORT[function.__name__] * x.numel()
            yield "elementwise", Case(function.__name__, lambda x=x, f=function: f(x), effort, 8 * x.numel())
        transposed = lambda x=x: x.transpose(1, 2).contiguous()  # noqa: E731
        yield "copy", Case("transpose", transposed, x.numel(), 8 * x.numel())
    for heads, tokens, width in itertools.product((3, 12), (49, 128, 197), (32, 64)):
        q = torch.randn(2, heads, tokens, width)
        call = lambda q=q: F.scaled_dot_product_attention(q, q, q)  # noqa: E731
        yield "matmul", Case("attention", call, 2 * q.numel() * tokens, 16 * q.numel())
        product = lambda q=q: q @ q.transpose(-2, -1)  # noqa: E731
        yield "matmul", Case("matmul", product, q.numel() * tokens, 4 * (2 * q.numel() + 2 * heads * tokens**2))


def dense_loop() -> Iterator[Case]:
    for channels, side, kernel in ((16, 4, 1), (64, 32, 3), (128, 16, 3), (256, 8, 3), (64, 16, 1), (256, 8, 1)):
        shape = packing.Convolution(channels, channels, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2))
        x = empty_blocks(16, channels, side, side, 1)
        out = empty_blocks(16, channels, side, side, 1)
        weight = torch.randn(shape.weight_shape)
        filters = packing.pack_dense_filters(weight, shape, x)
        prepared = kernels.prepare_convolution(filters, x, out)
        products = 16 * side**2 * weight.numel()
        moved = 2 * 4 * 16 * channels * side**2
        yield Case(f"{channels}, {side}, {kernel}", lambda p=prepared: kernels.run([p]), products, moved)


def engine_attention() -> Iterator[Case]:
    for heads, tokens, width in itertools.product((3, 12), (49, 128, 197, 512), (32, 64)):
        x = empty_blocks(2, 3 * heads * width, 1, tokens, patches=(1, 16))
        out = empty_blocks(2, heads * width, 1, tokens, patches=(1, 16))
        x.data.normal_()
        where = [Heads(first, width, 1) for first in range(0, 3 * heads * width, heads * width)]
        prepared = kernels.prepare_attention(x, x, x, out, where, heads, width, width**-0.5)
        products = 2 * 2 * heads * width * tokens**2
        moved = 4 * 2 * 4 * heads * width * tokens
        yield Case(f"{heads} x {width}, {tokens}", lambda p=prepared: kernels.run([p]), products, moved)


def blocks() -> Iterator[tuple[int, int, int, Blocks, Blocks]]:
    for batch, (channels, side) in itertools.product((16, 64), ((16, 4), (64, 8), (64, 28), (256, 14))):
        x, out = (empty_blocks(batch, channels, side, side, 1) for _ in range(2))
        yield batch, channels, side, x, out


def engine_elementwise() -> Iterator[Case]:
    for batch, channels, side, x, out in blocks():
        prepared = kernels.prepare_scale_shift(x, out, activation="relu")
        moved = 2 * 4 * batch * channels * side**2
        yield Case(f"{batch} x {channels}, {side}", lambda p=prepared: kernels.run([p]), 0, moved)


def engine_pool() -> Iterator[Case]:
    for batch, channels, side, x, _ in blocks():
        out = empty_blocks(batch, channels, side // 2, side // 2)
        prepared = kernels.prepare_max_pool(x, out, (2, 2), (2, 2))
        moved = 1.25 * 4 * batch * channels * side**2
        yield Case(f"{batch} x {channels}, {side}", lambda p=prepared: kernels.run([p]), 0, moved)


def engine_pack() -> Iterator[Case]:
    for batch, channels, side, x, _ in blocks():
        plain = torch.randn(batch, channels, side, side)
        for given in (plain, plain.contiguous(memory_format=torch.channels_last)):
            call = lambda g=given, x=x: kernels.pack_input(g, x)  # noqa: E731
            yield Case(f"{batch} x {channels}, {side}", call, 0, 8 * plain.numel())


def engine_relayout() -> Iterator[Case]:
    for channels, side in ((40, 28), (240, 28), (64, 56), (512, 14), (16, 112)):
        x = empty_blocks(1, channels, side, side, patches=(4, 4))
        out = empty_blocks(1, channels, side, side, patches=(2, 8))
        prepared = kernels.prepare_relayout(x, out)
        moved = 2 * 4 * channels * side**2
        yield Case(f"{channels}, {side}", lambda p=prepared: kernels.run([p]), 0, moved)


def engine_unpack() -> Iterator[Case]:
    for batch, channels, side, x, _ in blocks():
        moved = 2 * 4 * batch * channels * side**2
        yield Case(f"{batch} x {channels}, {side}", lambda x=x: kernels.unpack_output(x), 0, moved)


ENGINE: dict[str, Callable[[], Iterator[Case]]] = {
    "convolution": dense_loop, "attention": engine_attention, "elementwise": engine_elementwise, "pool": engine_pool,
    "relayout": engine_relayout, "pack": engine_pack, "unpack": engine_unpack,
}  # fmt: skip


def fitted(cases: list[Case], times: Tensor) -> Cost:
    """Numbers that are not negative, by least squares of relative errors."""
    rows = [[1.0, case.products, case.bytes, max(0, case.bytes - NEAR)] for case in cases]
    features = torch.tensor(rows, dtype=torch.float64)
    best, least = Cost(0, 0, 0, 0), math.inf
    for chosen in itertools.product((False, True), repeat=4):
        columns = [i for i in range(4) if chosen[i] and bool(features[:, i].any())]
        if not columns:
            continue
        relative = features[:, columns] / times[:, None]
        scale = relative.amax(0)
        found = torch.linalg.lstsq(relative / scale, torch.ones(len(cases), 1, dtype=torch.float64)).solution[:, 0]
        numbers = torch.zeros(4, dtype=torch.float64)
        numbers[columns] = found / scale
        error = float(((features @ numbers / times) - 1).square().sum())
        if error < least and bool((numbers >= 0).all()):
            best, least = Cost(*numbers.tolist()), error
    return best


def show(kind: str, cases: list[Case], times: list[float], *, all_cases: bool) -> None:
    cost = fitted(cases, torch.tensor(times, dtype=torch.float64))
    factors = []
    for case, taken in zip(cases, times, strict=True):
        said = 1e9 * cost.seconds(case.products, case.bytes)
        factors.append(max(said / taken, taken / said))
        if all_cases:
            print(f"    {case.what:70} {taken / 1e3:10.1f} us, fitted {said / 1e3:10.1f}")
    mean = sum(factors) / len(factors)
    numbers = f"{cost.call:.0f}, {cost.product:.3g}, {cost.byte:.3g}, {cost.far:.3g}"
    print(f'    "{kind}": Cost({numbers}),  # {mean:.2f}, {max(factors):.2f}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--cases", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, list[tuple[Case, float]]] = {}
    with torch.no_grad():
        for batch, name in itertools.product(map(int, options.batches.split(",")), options.networks.split(",")):
            for kind, case, taken in pytorch(name, batch):
                found.setdefault(kind, []).append((case, taken))
        for kind, case in alone():
            found.setdefault(kind, []).append((case, nanoseconds(case.call)))
        print("PYTORCH")
        for kind, pairs in sorted(found.items()):
            show(kind, [case for case, _ in pairs], [taken for _, taken in pairs], all_cases=options.cases)
        print("ENGINE")
        for kind, made in ENGINE.items():
            cases = list(made())
            show(kind, cases, [nanoseconds(case.call) for case in cases], all_cases=options.cases)


if __name__ == "__main__":
    main()
