"""What bench.sparse times: lpk.sparsify and its peers, each given a network and a batch of images.

Every contestant has its inputs in the layout that it likes best before the clock starts, and as many threads as
PyTorch.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import lpk
from bench.deepsparse_peer import warm_seconds
from lpk.networks.folding import Folded

NAMES = {
    "lpk": "lpk",
    "eager": "PyTorch",
    "folded": "PyTorch, BatchNorm folded",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "deepsparse": "DeepSparse",
}
DENSE = ("eager", "folded", "compile", "onnxruntime")  # to which zeros make no difference


class Contestant(Protocol):
    def seconds(self) -> float:
        """The time of one call that comes after others: deepsparse_peer.warm_seconds."""

    def output(self) -> Tensor: ...


class Here:
    """A contestant in this process."""

    def __init__(self, call: Callable[[Any], Any], inputs: Any) -> None:
        self.call = call
        self.inputs = inputs

    @torch.inference_mode()
    def seconds(self) -> float:
        return warm_seconds(lambda: self.call(self.inputs))

    @torch.inference_mode()
    def output(self) -> Tensor:
        return torch.as_tensor(self.call(self.inputs)).clone()


class DeepSparse:
    """A contestant in another interpreter: deepsparse_peer.py. Raises RuntimeError with what it said where it fails."""

    def __init__(self, python: str, network: Path, inputs: Tensor) -> None:
        folder = network.parent
        self.outputs = folder / "outputs.npy"
        self.log = folder / "deepsparse.log"
        np.save(folder / "inputs.npy", inputs.numpy())
        script = Path(__file__).with_name("deepsparse_peer.py")
        command = [python, script, network, folder / "inputs.npy", self.outputs, "--threads", torch.get_num_threads()]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"NM_DISABLE_ANALYTICS": "1"},
            )
        self.about = self._answer()

    def seconds(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("1\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"][0])

    def output(self) -> Tensor:
        return torch.from_numpy(np.load(self.outputs))

    def close(self) -> None:
        self.process.communicate()  # the end of its input is the end of the process

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"DeepSparse ended with status {self.process.returncode}:\n{self.log.read_text()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def missing(name: str, deepsparse: str | None) -> str | None:
    """Why a contestant can't run here; None if it can."""
    needed = {"onnxruntime": ["onnx", "onnxruntime"], "deepsparse": ["onnx"]}.get(name, [])
    if name == "deepsparse" and deepsparse is None:
        needed.append("deepsparse")
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} can't be imported" if absent else None


@contextmanager
def contestants(
    names: Collection[str], network: nn.Module, inputs: Tensor, *, deepsparse: str | None = None
) -> Iterator[dict[str, Contestant]]:
    """Those of the names, by name, until the context ends.

    network: in evaluation mode; it is not changed. inputs: float32 [B, C, H, W].
    deepsparse: a Python interpreter that can import deepsparse; None: this one.
    """
    last = inputs.contiguous(memory_format=torch.channels_last)
    made: dict[str, Contestant] = {}
    with ExitStack() as stack:
        onnx = None
        if {"onnxruntime", "deepsparse"} & set(names):
            onnx = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "network.onnx"
            export(network, inputs, onnx)
        for name in names:
            if name == "lpk":
                made[name] = Here(lpk.sparsify(network), inputs)
            elif name == "eager":
                made[name] = Here(channels_last(network), last)
            elif name == "folded":
                made[name] = Here(Folded(channels_last(network)).network, last)
            elif name == "compile":
                made[name] = Here(stack.enter_context(compiled(channels_last(network))), last)
            elif name == "onnxruntime":
                assert onnx is not None
                made[name] = Here(onnx_runtime(onnx), inputs.numpy())
            elif name == "deepsparse":
                assert onnx is not None
                peer = DeepSparse(deepsparse or sys.executable, onnx, inputs)
                stack.callback(peer.close)
                made[name] = peer
            else:
                raise ValueError(f"{name!r} is no contestant; there are {', '.join(NAMES)}")
        yield made


def about(made: dict[str, Contestant]) -> dict[str, dict[str, Any]]:
    """The versions of the contestants that are not PyTorch or lpk, and what else they say of themselves."""
    found = {}
    if "onnxruntime" in made:
        found["onnxruntime"] = {"version": importlib.metadata.version("onnxruntime")}
    if isinstance(peer := made.get("deepsparse"), DeepSparse):
        found["deepsparse"] = peer.about
    return found


def channels_last(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


@contextmanager
def compiled(network: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """torch.compile with frozen weights: BatchNorm is folded, and weights are laid out for oneDNN."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        yield torch.compile(network, dynamic=False)
    torch.compiler.reset()


def export(network: nn.Module, inputs: Tensor, path: Path) -> None:
    """An ONNX file of a fixed batch, with all weights, zeros among them, and BatchNorm folded.

    Of the exporter before torch.export's: DeepSparse 1.8 leaves what the newer one writes to an old ONNX Runtime.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network, (inputs,), path, dynamo=False, opset_version=17)


def onnx_runtime(path: Path) -> Callable[[Any], Any]:
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
