"""Whole networks on lpk's engine beside the dense paths of PyTorch and, where it is installed, ONNX Runtime.

python -m bench.sparse [--networks resnet18 vgg16] [--densities 1 0.2 0.05 0.018] [--batches 128 1] [--compile]

The weights are drawn at random and pruned by global magnitude: the layers' densities are those of real tickets only
roughly, the early layers keep more. Each number is the median of several calls, after two that are not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import lpk
from bench.results import describe, machine
from lpk import models, ops
from lpk.eager import Folded
from lpk.flat import Layout

SHAPE = (3, 32, 32)
SECONDS = 2.0  # for each contestant

Call = Callable[[Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.sparse")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "vgg16"], choices=models.NAMES)
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.2, 0.05, 0.018])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1])
    parser.add_argument("--compile", action="store_true", help="torch.compile with frozen weights, too")
    given = parser.parse_args()
    print(describe(machine(), "cpu"))
    for name in given.networks:
        for batch in given.batches:
            print(f"\n{name}, {SHAPE}, batch {batch}: milliseconds")
            inputs = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
            dense = pruned(name, 1.0)
            fastest = min(report(peer, call, inputs) for peer, call in peers(dense, inputs, given.compile))
            for density in given.densities:
                fast = lpk.sparsify(pruned(name, density))
                report(f"lpk, {density:.1%}", fast, inputs, fastest)


def pruned(name: str, density: float) -> nn.Module:
    torch.manual_seed(0)
    network = models.build(name, classes=10, shape=SHAPE)
    layout = Layout.of_model(network)
    flat = layout.flatten(network.state_dict())
    ops.magnitude_prune(flat.weights, round(density * layout.n), out=flat.weights)
    network.load_state_dict(layout.unflatten(flat))
    return network.eval().requires_grad_(False)


def peers(network: nn.Module, inputs: Tensor, with_compile: bool) -> Iterator[tuple[str, Call]]:
    """What runs the dense network; the density makes no difference to them."""
    last = network.to(memory_format=torch.channels_last)

    def channels_last(module: nn.Module) -> Call:
        return lambda x: module(x.contiguous(memory_format=torch.channels_last))

    yield "PyTorch, channels_last", channels_last(last)
    yield "PyTorch, channels_last, BatchNorm folded", channels_last(Folded(last).network)
    if with_compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
        yield "torch.compile, frozen", channels_last(torch.compile(last))  # type: ignore[arg-type]
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        yield "ONNX Runtime", onnx_runtime(network, inputs)


def onnx_runtime(network: nn.Module, inputs: Tensor) -> Call:
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network, (inputs,), path, dynamo=True, external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def report(contestant: str, call: Call, inputs: Tensor, fastest: float | None = None) -> float:
    seconds = timed(call, inputs)
    ratio = "" if fastest is None else f"{fastest / seconds:8.2f} times the fastest dense path"
    print(f"  {contestant:45}{1e3 * seconds:10.2f}{ratio}", flush=True)
    return seconds


@torch.inference_mode()
def timed(call: Call, inputs: Tensor) -> float:
    for _ in range(2):
        call(inputs)
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 5:
        began = time.perf_counter()
        call(inputs)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
