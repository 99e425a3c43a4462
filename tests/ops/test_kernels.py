"""lpk.kernels without a GPU: run by Triton's interpreter, and compiled ahead of time for sm_80 and sm_90."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from lpk.kernels import threshold, threshold_bracket, threshold_histogram, threshold_last  # noqa: E402
from lpk.kernels.elements import BLOCK, OPTIONS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": 31, "fp16": 15, "bf16": 15}  # bits of a key

# What the kernels' parameters point to; what is not here is a number: n has 64 bits, the others 32.
POINTERS = {
    **dict.fromkeys(("alpha", "alphas", "value", "values"), "*fp32"),
    **dict.fromkeys(("last", "lasts", "first_bad", "survivors", "above", "sums"), "*i64"),
    **dict.fromkeys(("keys", "low", "high", "shift", "pending", "bins", "counts", "tied"), "*i32"),
}


def test_under_the_interpreter():
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/interpreted_kernels.py"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_importing_lpk_does_not_import_triton():
    """lpk works where Triton is missing."""
    program = "import sys; sys.modules['triton'] = None; import lpk; assert 'lpk.kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def kernels():
    """Every kernel, by its module and name, with its constants and whether it interpolates; for each dtype."""
    for dtype, key_bits in DTYPES.items():
        bin_bits = threshold_histogram.bin_bits(2**26, key_bits)
        segments = {"SEGMENTS": (1 << bin_bits) // threshold_histogram.SEGMENT, "SEGMENT": threshold_histogram.SEGMENT}
        bits = {"KEY_BITS": key_bits, "BIN_BITS": bin_bits}
        counters, groups = {"COUNTERS": threshold_histogram.COUNTERS}, {"GROUPS": threshold_last.GROUPS}
        block, counted = {"BLOCK": BLOCK}, {"BLOCK": threshold.COUNT_BLOCK}
        counting = {"BIN_COUNT": 1 << bin_bits} | counters | counted
        sample = {"SAMPLE": threshold_bracket.SAMPLE}
        pair, alone = {"HAS_B": True}, {"HAS_B": False}
        described = [
            ("interpolate", "interpolate", block, True),
            ("interpolate_prune", "interpolate_prune", block | pair, True),
            ("interpolate_prune", "interpolate_prune", block | alone, False),
            ("interpolate_prune", "interpolate_prune_all", block, True),
            ("magnitude_mask", "magnitude_mask", block, False),
            ("threshold_bracket", "sample", {**sample, "SEED": threshold_bracket.SEED, "BLOCK": 256} | pair, True),
            ("threshold_bracket", "bracket", sample | bits | {"HEAVY": threshold_bracket.HEAVY}, False),
            ("threshold_histogram", "clear", segments | counters, False),
            ("threshold_histogram", "count", counting | pair, True),
            ("threshold_histogram", "count", counting | alone, False),
            ("threshold_histogram", "add_segments", segments, False),
            ("threshold_histogram", "narrow", bits | counters | segments, False),
            ("threshold_last", "count_equal", counted | groups | pair, True),
            ("threshold_last", "find", block | groups | pair, True),
        ]
        for module, name, constants, interpolates in described:
            label = f"{name}{'' if constants.get('HAS_B', True) else '-without-b'}-{dtype}"
            yield pytest.param(module, name, dtype, constants, interpolates, id=label)


def signature(kernel, name, dtype, constants):
    """The types of a kernel's arguments."""
    types = POINTERS | dict.fromkeys(("a", "b"), f"*{dtype}")
    types |= {"x": f"*{dtype}", "out": "*i1" if name == "magnitude_mask" else f"*{dtype}", "n": "i64", "keep": "i64"}
    return {p: "constexpr" if p in constants else types.get(p, "i32") for p in kernel.arg_names}


def compiled(module, name, dtype, constants, architecture):
    """As the launcher compiles it for vectors that PyTorch allocated, 2^26 elements long."""
    kernel = getattr(importlib.import_module(f"lpk.kernels.{module}"), f"{name}_kernel")
    types = signature(kernel, name, dtype, constants)
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, parameter in enumerate(kernel.params)
        if (types[parameter.name][0] == "*" or parameter.name == "n") and not parameter.do_not_specialize_on_alignment
    }
    options = {"count": threshold.COUNT_OPTIONS, "count_equal": threshold.COUNT_OPTIONS, "clear": {}}
    options |= {"add_segments": {}, "narrow": {}, "bracket": {"num_warps": threshold_bracket.BRACKET_WARPS}}
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options.get(name, OPTIONS))


def spilled(binary, directory):
    """Bytes of stack for each thread, which is where registers spill."""
    path = directory / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("module", "name", "dtype", "constants", "interpolates"), list(kernels()))
def test_compiles(module, name, dtype, constants, interpolates, architecture, tmp_path):
    binary = compiled(module, name, dtype, constants, architecture)
    ptx = binary.asm["ptx"]
    assert spilled(binary, tmp_path) == 0
    assert ".ftz" not in ptx, "denormals count"
    fused = re.findall(r"fma\.rn\.f32\s+%r\d+, (%r\d+), (%r\d+), (%r\d+)", ptx)
    assert len(fused) == len(re.findall(r"\bfma\.", ptx))
    if not interpolates:
        assert not fused
        return
    # alpha * a is inside the fma, beta * b a product of its own, rounded once; beta the same for all.
    products = set(re.findall(r"\bmul(?:\.rn)?\.f32\s+(%r\d+),", ptx))
    assert fused and {addend for *_, addend in fused} <= products
    assert len({addend for *_, addend in fused}) == len(fused)
    assert len(re.findall(r"\bsub(?:\.rn)?\.f32", ptx)) == 1
