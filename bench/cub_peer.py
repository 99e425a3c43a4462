"""CUB's DeviceTopK as a peer: bench/cub_topk.cu, built by nvcc once and loaded by ctypes.

The headers are those of CCCL 3.3 or newer: in the folder that CCCL_INCLUDE names, of `pip install nvidia-cuda-cccl`, or
nvcc's own. The library in build/bench is named after its source, and needs neither nvcc nor headers on the machine that
it is copied to; `python -m bench.cub_peer` builds it and names it. Vectors are float32 CUDA tensors.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("cub_topk.cu")
BUILT = SOURCE.parents[1] / "build" / "bench"
ARCHITECTURES = ("arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]")


def threshold(a: Tensor, b: Tensor, alpha: float, keep: int) -> Tensor:
    return largest("largest_magnitudes", torch.lerp(b, a, alpha), keep).min()


def mask(x: Tensor, keep: int) -> Tensor:
    survives = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    survives[largest("largest_indices", x, keep)] = True
    return survives


def prune(a: Tensor, b: Tensor, alpha: float, keep: int) -> Tensor:
    x = torch.lerp(b, a, alpha)
    return x.mul_(mask(x, keep))


def largest(function: str, x: Tensor, keep: int) -> Tensor:
    """What a function of cub_topk.cu returns for x, [keep]. Raises NotImplementedError where there is no library."""
    found = library()
    if isinstance(found, str):
        raise NotImplementedError(found)
    out = x.new_empty(keep, dtype=torch.float32 if function == "largest_magnitudes" else torch.int64)
    size = ctypes.c_size_t()

    def run(storage: int | None) -> None:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        arguments = storage, ctypes.byref(size), x.data_ptr(), out.data_ptr(), len(x), keep, stream
        error = getattr(found, function)(*arguments)
        if error:
            raise RuntimeError(f"{function} of {len(x)} elements, keep = {keep}: CUDA error {error}")

    run(None)
    run(x.new_empty(size.value, dtype=torch.uint8).data_ptr())
    return out


@functools.cache
def library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = BUILT / f"cub_topk-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not path.is_file() and (problem := build(path)):
        return f"CUB's top-k was not built: {problem}"
    loaded = ctypes.CDLL(str(path))
    address, size = ctypes.c_void_p, ctypes.c_uint32
    for function in (loaded.largest_magnitudes, loaded.largest_indices):
        function.argtypes = [address, ctypes.POINTER(ctypes.c_size_t), address, address, size, size, address]
    return loaded


def build(path: Path) -> str | None:
    """Compiles the library. Returns what went wrong, in a line."""
    cuda = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *cuda, "/usr/local/cuda/bin"]))
    if nvcc is None:
        return "there is no nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    found = next((f for f in folders() if (f / "cub/device/device_topk.cuh").is_file()), None)
    command = [nvcc, "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", str(SOURCE), "-o", str(unfinished)]
    command += [option for architecture in ARCHITECTURES for option in ("-gencode", architecture)]
    done = subprocess.run(command + ([f"-I{found}"] if found else []), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).splitlines()
        return next((line for line in said if "error" in line), f"nvcc's exit status is {done.returncode}")
    unfinished.replace(path)
    return None


def folders() -> Iterator[Path]:
    """Where headers may be that are newer than nvcc's."""
    if named := os.environ.get("CCCL_INCLUDE"):
        yield Path(named)
    if installed := importlib.util.find_spec("nvidia"):
        for place in installed.submodule_search_locations or ():
            yield from sorted(Path(place).glob("*/include/cccl"), reverse=True)


if __name__ == "__main__":
    print(library())
