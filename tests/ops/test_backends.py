"""What runs in a process: backends, configurations, one OpenMP runtime."""

import os
import subprocess
import sys

import pytest

from lpk import _core, ops


def test_backends_say_what_runs():
    assert "cpu" in ops.backends()


def test_unknown_configurations_are_errors():
    with pytest.raises(ValueError, match="nonsense"):
        _core.set_instruction_set("nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        _core.set_selection("nonsense")


def instruction_set(asked):
    """Which one a process uses, first and once it goes back to the default, with LPK_CPU."""
    program = (
        "from lpk import _core, ops; first = ops.instruction_set(); _core.set_instruction_set('portable'); "
        "_core.set_instruction_set('auto'); print(first, ops.instruction_set())"
    )
    environment = os.environ | {"LPK_CPU": asked}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_environment_chooses_the_instruction_set():
    usable = _core.instruction_sets()
    assert instruction_set("portable").stdout.split() == ["portable", "portable"]
    run = instruction_set("sse9")
    line = f'the environment variable LPK_CPU is "sse9"; on this processor lpk can use: {", ".join(usable)}'
    assert run.returncode == 1 and run.stderr.splitlines()[-1] == f"ImportError: {line}"


def test_one_openmp_runtime():
    """A second OpenMP runtime in the process slows every parallel region of both."""
    program = (
        "import lpk, lpk.ops, re, torch\n"
        "lpk.ops.magnitude_mask(torch.randn(1 << 20), 1000)\n"
        "maps = open('/proc/self/maps').read()\n"
        r"print(*sorted(set(re.findall(r'/\S*/(?:libgomp|libiomp|libomp)\S*', maps))))"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/maps")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(run.stdout.split()) == 1, run.stdout
