"""The most memory that a process had, and what a network needs on lpk.sparsify and in PyTorch.

python -m bench.memory lpk|eager network.safetensors --batch 128
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lpk
from bench import networks
from bench.results import significant
from lpk import _core
from lpk.tickets import files

NAMES = ("lpk", "eager")


def most_memory() -> float:
    """The most MiB of resident memory that this process had. (getrusage's number starts at its parent's.)"""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def of(name: str, model: nn.Module, network: Mapping[str, Any], batch: int) -> dict[str, float]:
    """What `peak` finds in a process of its own. network: the arguments of networks.build that made the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        files.save_tensors(path, model.state_dict(), network)
        command = [sys.executable, "-m", "bench.memory", name, str(path), "--batch", str(batch)]
        found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


@torch.inference_mode()
def peak(name: str, path: Path, batch: int) -> dict[str, float]:
    """MiB that this process had at most: after its imports, with the network loaded, and after a call; and the MiB of
    the weights kept for the next call."""
    found = {"imports": most_memory()}
    state, network = files.load_tensors(path)
    model = networks.build(network)
    model.load_state_dict(state)
    del state
    found["loaded"] = most_memory()
    inputs = networks.inputs(network, batch)
    if name == "lpk":
        fast = lpk.sparsify(model)
        del model
        fast(inputs)
        weights = held(fast)
    else:
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        last = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
        model.to(memory_format=torch.channels_last)(last)
    found |= {"peak": most_memory(), "weights": weights / 2**20}
    return {key: significant(mebibytes) for key, mebibytes in found.items()}


def held(fast: lpk.sparse.Sparse) -> int:
    """The bytes that it keeps: of the model, of the weights that remain, and of the filters packed for the engine."""
    parts: list[Any] = list(fast._model[0].state_dict().values())
    for remaining in fast._remaining.values():
        parts += vars(remaining).values()
    for network in fast._networks.values():
        for filters in network.weights.packed.values() if network else []:
            parts += vars(filters).values()
    code = sum(part.bytes for part in parts if isinstance(part, _core.CompiledFilters))
    return code + sum(part.untyped_storage().nbytes() for part in parts if isinstance(part, Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.memory")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("network", type=Path, help="safetensors, with the arguments of networks.build in its header")
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    print(json.dumps(peak(given.name, given.network, given.batch)))


if __name__ == "__main__":
    main()
