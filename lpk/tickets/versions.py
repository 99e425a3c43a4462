"""What a result depends on."""

from __future__ import annotations

import platform

import torch

from lpk import ops, version


def versions() -> dict[str, str | int]:
    """What a result depends on: versions, the processor's instruction set, threads."""
    return {
        "lpk": version.OWN,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instruction_set": ops.instruction_set(),
        "threads": torch.get_num_threads(),
    }
