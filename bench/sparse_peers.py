"""What bench.sparse times: lpk.sparsify and its peers, each given a network and a batch of inputs.

Every contestant has its inputs in the layout that it likes best before the clock starts, and as many threads as
PyTorch. Outputs are compared by their first tensor.
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
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import lpk
from bench.deepsparse_peer import warm_seconds
from bench.networks import first_tensor
from lpk.networks.batchnorm import batchnorms
from lpk.networks.folding import Folded

NAMES = {
    "lpk": "lpk",
    "eager": "PyTorch",
    "folded": "PyTorch, BatchNorm folded",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "deepsparse": "DeepSparse",
}
DENSE = ("eager", "folded", "compile", "onnxruntime", "openvino")  # to which zeros make no difference
NEEDED = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "deepsparse": ("onnx",)}


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
        output = self.call(self.inputs)
        return (torch.from_numpy(output) if isinstance(output, np.ndarray) else first_tensor(output)).clone()


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
    needed = [*NEEDED.get(name, ())]
    if name == "deepsparse" and deepsparse is None:
        needed.append("deepsparse")
    absent = [package for package in needed if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} can't be imported" if absent else None


@contextmanager
def contestants(
    names: Collection[str], network: nn.Module, inputs: Tensor, *, deepsparse: str | None = None
) -> Iterator[dict[str, Contestant]]:
    """Those of the names, by name, until the context ends.

    A peer that can't run the network is told and left out, and "folded" where there is no BatchNorm; lpk's error is
    raised.

    network: in evaluation mode; it is not changed. inputs: [B, ...], float32 or, of tokens, int64.
    deepsparse: a Python interpreter that can import deepsparse; None: this one.
    """
    made: dict[str, Contestant] = {}
    with ExitStack() as stack:
        maker = _Maker(network, inputs, deepsparse or sys.executable, stack)
        for name in names:
            if name not in NAMES:
                raise ValueError(f"{name!r} is no contestant; there are {', '.join(NAMES)}")
            if name == "folded" and not any(batchnorms(network)):
                continue
            try:
                made[name] = maker.make(name)
            except Exception as error:  # whatever a peer raises for a network that it does not know
                if name == "lpk":
                    raise
                print(f"not measured: {NAMES[name]}: {type(error).__name__}: {_first_line(error)}", flush=True)
        yield made


class _Maker:
    """Makes contestants, which end with the stack."""

    def __init__(self, network: nn.Module, inputs: Tensor, deepsparse: str, stack: ExitStack) -> None:
        self.network = network
        self.inputs = inputs
        self.last = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
        self.deepsparse = deepsparse
        self.stack = stack

    def make(self, name: str) -> Contestant:
        if name == "lpk":
            return Here(lpk.sparsify(self.network), self.inputs)
        if name == "eager":
            return Here(channels_last(self.network), self.last)
        if name == "folded":
            return Here(Folded(channels_last(self.network)).network, self.last)
        if name == "compile":
            return Here(self.stack.enter_context(compiled(channels_last(self.network))), self.last)
        if name == "onnxruntime":
            return Here(onnx_runtime(self.onnx), self.inputs.numpy())
        if name == "openvino":
            return Here(openvino(self.onnx), self.inputs.numpy())
        peer = DeepSparse(self.deepsparse, self.onnx, self.inputs)
        self.stack.callback(peer.close)
        return peer

    @cached_property
    def onnx(self) -> Path:
        path = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "network.onnx"
        export(self.network, self.inputs, path)
        return path


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


def about(made: dict[str, Contestant]) -> dict[str, dict[str, Any]]:
    """The versions of the contestants that are not PyTorch or lpk, and what else they say of themselves."""
    found: dict[str, dict[str, Any]] = {
        name: {"version": importlib.metadata.version(name)} for name in ("onnxruntime", "openvino") if name in made
    }
    if "eager" in made:  # ATEN_CPU_CAPABILITY may have chosen another than the processor's best
        found["eager"] = {"instruction_set": torch.backends.cpu.get_cpu_capability()}
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
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the exporter does not know PyTorch's one operation for a layer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: shapes become constants, which a fixed batch wants
            torch.onnx.export(FirstTensor(network).eval(), (inputs,), path, dynamo=False, opset_version=17)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class FirstTensor(nn.Module):
    """A network that returns only the first tensor of its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return first_tensor(self.network(inputs))


def onnx_runtime(path: Path) -> Callable[[Any], Any]:
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(path: Path) -> Callable[[Any], Any]:
    import openvino as ov  # type: ignore[import-not-found,unused-ignore]

    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(path),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()
    return lambda x: request.infer([x], share_inputs=True)[0]
