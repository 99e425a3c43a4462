"""What each compiled CUDA kernel asks of a GPU, printed, and that none spills: no GPU is needed to know it."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lpk import _core

COLUMNS = ("kernel", "architecture", "registers", "stack", "shared", "local")
USAGE = re.compile(
    r"^arch = (?P<architecture>\w+)$"
    r"|Function (?:void )?(?P<kernel>[^(]+)\(.*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
    re.MULTILINE,
)


def cuobjdump() -> str | None:
    """A CUDA toolkit's, or the one that Triton's wheel brings."""
    triton = importlib.util.find_spec("triton")
    places = [Path(p) / "backends/nvidia/bin" for p in (triton.submodule_search_locations if triton else [])]
    found = (shutil.which("cuobjdump", path=place) for place in (None, "/usr/local/cuda/bin", *places))
    return next(filter(None, found), None)


def kernels_of(usage: str) -> list[tuple[str, str, int, int, int, int]]:
    """A row of COLUMNS for every kernel and architecture, from the demangled output of cuobjdump."""
    rows, architecture = [], ""
    for found in USAGE.finditer(usage.replace("(anonymous namespace)::", "").replace("lpk::cuda::", "")):
        if found["architecture"]:
            architecture = found["architecture"]
        else:
            registers, stack, shared, local = map(int, found.groups()[2:])
            rows.append((found["kernel"], architecture, registers, stack, shared, local))
    return sorted(rows)


def test_no_kernel_spills(capsys):
    if not _core.cuda_compiled:
        pytest.skip("the CUDA kernels were not compiled")
    tool, demangle = cuobjdump(), shutil.which("c++filt")
    if tool is None or demangle is None:
        pytest.skip("needs cuobjdump, of a CUDA toolkit or of Triton, and c++filt")
    command = [tool, "--dump-resource-usage", _core.__file__]
    mangled = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = subprocess.run([demangle], input=mangled, check=True, capture_output=True, text=True).stdout
    rows = kernels_of(usage)
    with capsys.disabled():
        print("\n" + "\n".join("{:32}{:>14}{:>11}{:>7}{:>8}{:>7}".format(*row) for row in [COLUMNS, *rows]))
    assert len(rows) == usage.count(" Function ") > 0
    assert {row[1] for row in rows} == {f"sm_{name}" for name in _core.cuda_architectures.split()}
    # Registers that spill lie in a thread's stack frame, in memory that is far slower.
    assert not [row for row in rows if row[3] or row[5]]
