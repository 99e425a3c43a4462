"""Times the engine's convolutions on the layers of ResNet-18 for 32 x 32 images.

    python -m bench.sparse_layers [--batch 128] [--threads 2] [--densities 0.35,0.2,0.05,0.01] [--layers 64x32]

For each layer and density: milliseconds, billions of multiplications with weights that are not zero (GMAC/s), their
share of what the processor's FMA units can do, and PyTorch's conv2d in channels_last beside it. Winograd's algorithm
multiplies a quarter of what is counted here.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lpk import _core
from lpk.sparse import kernels, packing
from lpk.sparse.blocks import IMAGES, empty_blocks
from lpk.sparse.patches import best_cut

# name: channels, filters, input size, kernel, stride
LAYERS = {
    "3x224/2 7x7": (3, 64, 224, 7, 2),
    "3x32": (3, 64, 32, 3, 1),
    "64x32": (64, 64, 32, 3, 1),
    "64x32/2": (64, 128, 32, 3, 2),
    "64x32/2 1x1": (64, 128, 32, 1, 2),
    "128x16": (128, 128, 16, 3, 1),
    "128x16/2": (128, 256, 16, 3, 2),
    "256x8": (256, 256, 8, 3, 1),
    "256x8/2": (256, 512, 8, 3, 2),
    "512x4": (512, 512, 4, 3, 1),
    "512x1 linear": (512, 1000, 1, 1, 1),
}

LANES = {"portable": 4, "avx2": 8, "avx512": 16}
FLAGS = {"portable": "", "avx2": "-mavx2 -mfma", "avx512": "-mavx512f"}
PEAK = """
#define UNROLL _Pragma("GCC unroll 12")
typedef float V __attribute__((vector_size(4 * LANES)));
void run(long n, float* out) {
  V x[12], a = {}, b = {};
  a += out[0], b += out[1];
  UNROLL for (int i = 0; i < 12; ++i) x[i] = a + (float)i;
  for (long j = 0; j < n; ++j) {
    UNROLL for (int i = 0; i < 12; ++i) x[i] = x[i] * a + b;
    __asm__ volatile("" : "+x"(x[0]));
  }
  UNROLL for (int i = 1; i < 12; ++i) x[0] += x[i];
  for (int i = 0; i < LANES; ++i) out[i] = x[0][i];
}
"""


def seconds(call: Callable[[], object], least: float = 0.3) -> float:
    """The fastest of some calls."""
    call()
    times: list[float] = []
    while sum(times) < least or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(threads: int) -> float:
    """GMAC/s of FMAs that only touch registers, on all threads at once."""
    isa = _core.instruction_set()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "peak.c"
        source.write_text(PEAK)
        command = ["gcc", "-O3", "-ffp-contract=fast", *FLAGS[isa].split(), f"-DLANES={LANES[isa]}", "-shared", "-fPIC"]
        subprocess.run([*command, str(source), "-o", f"{folder}/peak.so"], check=True)
        run = ctypes.CDLL(f"{folder}/peak.so").run
    n = 10_000_000
    outputs = [torch.zeros(16) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def on_all() -> None:
            list(pool.map(lambda out: run(ctypes.c_long(n), ctypes.c_void_p(out.data_ptr())), outputs))

        return threads * n * 12 * LANES[isa] / seconds(on_all) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--densities", default="0.35,0.2,0.05,0.01")
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--instruction-set", default="auto")
    parser.add_argument("--channels-per-block", type=int)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _core.set_instruction_set(options.instruction_set)
    most = peak(options.threads)
    print(f"{_core.instruction_set()}, {options.threads} threads, batch {options.batch}, FMA peak {most:.0f} GMAC/s")
    for name in options.layers.split(","):
        layer(name, [float(d) for d in options.densities.split(",")], options, most)


@torch.no_grad()
def layer(name: str, densities: list[float], options: argparse.Namespace, most: float) -> None:
    channels, filters, size, kernel, stride = LAYERS[name]
    convolution = packing.Convolution(filters, channels, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2))
    border = kernel // 2 if size > 1 else 0
    x = torch.randn(options.batch, channels, size, size)
    height, width = convolution.output_size(size, size)
    patches, patch = best_cut(height, width, min(options.batch, IMAGES))
    larger = (patch[0] * stride, patch[1] * stride)
    blocks = kernels.pack_input(x, empty_blocks(*x.shape, border, patches=patches, patch=larger))
    out = empty_blocks(options.batch, filters, height, width, border, patches=patches, patch=patch)
    weight, bias = torch.randn(convolution.weight_shape), torch.randn(filters)

    def row(what: str, multiplications: int, call: Callable[[], object]) -> None:
        taken = seconds(call)
        rate = multiplications * options.batch * height * width / taken / 1e9
        print(f"{name:14} {what:14} {1e3 * taken:8.3f} ms {rate:7.1f} GMAC/s {rate / most:6.1%}", flush=True)

    if not options.no_torch:
        last = x.contiguous(memory_format=torch.channels_last)
        torch_weight = weight.contiguous(memory_format=torch.channels_last)
        call = lambda: torch.nn.functional.conv2d(last, torch_weight, bias, stride, kernel // 2)  # noqa: E731
        row("torch", weight.numel(), call)
    dense = packing.pack_dense_filters(weight, convolution, blocks)
    row("dense", weight.numel(), lambda: kernels.convolution(dense, blocks, out, bias=bias, activation="relu"))
    if _core.winograd_applies(convolution.handle):
        winograd = packing.pack_winograd_filters(weight, convolution, out)
        call = lambda: kernels.convolution(winograd, blocks, out, bias=bias, activation="relu")  # noqa: E731
        row("winograd", weight.numel(), call)
    for density in densities:
        pruned = weight * (torch.rand_like(weight) < density)
        best, gathered = packing.best_blocks(convolution, blocks, out, int(pruned.count_nonzero()))
        sparse = packing.pack_filters(pruned, convolution, blocks, options.channels_per_block or best, gathered)
        row(
            f"{density:g}",
            len(sparse.entries),
            lambda sparse=sparse: kernels.convolution(sparse, blocks, out, bias=bias, activation="relu"),
        )
        if _core.compiles(convolution.handle, blocks.handle):
            code = packing.compile_filters(pruned, convolution, blocks)
            call = lambda code=code: kernels.convolution(code, blocks, out, bias=bias, activation="relu")  # noqa: E731
            row(f"{density:g} compiled", len(sparse.entries), call)


if __name__ == "__main__":
    main()
