"""What a result depends on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

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


def processor() -> str:
    """The processor's model name without the decoration that vendors put around it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        name = found[1]
    return " ".join(re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|\d+-Core|@.*", " ", name, flags=re.IGNORECASE).split())
