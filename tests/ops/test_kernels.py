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

from lpk.kernels import (  # noqa: E402
    threshold,
    threshold_bracket,
    threshold_histogram,
    threshold_marked,
    threshold_sweep,
    threshold_ties,
)
from lpk.kernels.elements import BLOCK, FOUR_WARPS, OPTIONS  # noqa: E402
from lpk.kernels.interpolate_prune import TOGETHER  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": 31, "fp16": 15, "bf16": 15}  # bits of a key
COEFFICIENTS = {"fp32": 11, "fp16": 2, "bf16": threshold.MOST_COEFFICIENTS}  # that have a sweep compiled
ALONE = ("bracket", "select", "narrow", "ties")  # one program at a time does most of what they do
ELEMENTWISE = ("interpolate", "interpolate_prune", "magnitude_mask")

# What the kernels' parameters point to; what is not here is a number: n, keep and entries have 64 bits, the others 32.
POINTERS = {
    **dict.fromkeys(("alpha", "alphas", "value", "values"), "*fp32"),
    **dict.fromkeys(("last", "lasts", "first_bad", "state", "words"), "*i64"),
    **dict.fromkeys(("keys", "coarse", "fine", "bins", "where", "places", "ties"), "*i32"),
}


@pytest.fixture(scope="module", autouse=True)
def interpreted(request):
    """The process of test_under_the_interpreter, which runs while the kernels compile: both take a minute."""
    if not any(item.name == "test_under_the_interpreter" for item in request.session.items):
        yield None
        return
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/interpreted_kernels.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        yield process
        process.kill()


def test_importing_lpk_does_not_import_triton():
    """lpk works where Triton is missing."""
    program = "import sys; sys.modules['triton'] = None; import lpk; assert 'lpk.kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def kernels():
    """Every kernel, by its module and name, with its constants and whether it interpolates; for each dtype."""
    for dtype, key_bits in DTYPES.items():
        sampled = {"SAMPLE": threshold_bracket.SAMPLE, "KEY_BITS": key_bits, "COARSE_BITS": threshold.COARSE_BITS}
        sample = sampled | {"SEED": threshold_bracket.SEED, "BLOCK": threshold_bracket.SAMPLE_BLOCK}
        bracket = sampled | {"MANY": threshold_bracket.MANY, "BLOCK": threshold_bracket.BRACKET_BLOCK}
        bracket |= {"FINE_BITS": min(threshold.FINE_BITS, key_bits - threshold.COARSE_BITS)}
        bracket |= {"BIN_BITS": threshold.BIN_BITS}
        sweep = {"ROWS": threshold_sweep.SWEEP_ROWS, "COLUMNS": threshold_sweep.SWEEP_COLUMNS}
        looking = {"ROWS": threshold_marked.MARKED_ROWS, "COLUMNS": threshold_marked.MARKED_COLUMNS}
        bins = {"BINS": 1 << threshold_histogram.ROUND_BITS, "CHUNK": threshold_histogram.HISTOGRAM_CHUNK}
        ties = {"TIES_CHUNK": threshold_ties.TIES_CHUNK, "BLOCK": threshold.BLOCK}
        lists = {"DIGIT_BITS": threshold_marked.DIGIT_BITS, "LIST_BLOCK": threshold_marked.LIST_BLOCK}
        first_bits = min(threshold_histogram.ROUND_BITS, key_bits)
        first, rest = {"SHIFT": key_bits - first_bits, "BITS": first_bits}, {"BITS": key_bits - first_bits}
        block, pair, alone = {"BLOCK": BLOCK}, {"HAS_B": True}, {"HAS_B": False}
        described = [
            ("interpolate", "interpolate", block, True),
            ("interpolate_prune", "interpolate_prune", block | pair, True),
            ("interpolate_prune", "interpolate_prune", block | alone, False),
            ("interpolate_prune", "interpolate_prune_all", block | {"TOGETHER": TOGETHER}, True),
            ("magnitude_mask", "magnitude_mask", block, False),
            ("threshold_bracket", "sample", sample | pair, True),
            ("threshold_bracket", "bracket", bracket, False),
            ("interpolate_threshold", "select", lists | first | bins | ties | pair, True),
            ("interpolate_threshold", "ties", ties | pair, True),
        ]
        if rest["BITS"]:
            described += [("interpolate_threshold", "narrow", rest | bins | {"BLOCK": threshold.BLOCK} | pair, True)]
        for vectors in (alone | {"K": 1}, pair | {"K": COEFFICIENTS[dtype]}):
            counted, listed = {"BINS": 1 << threshold.BIN_BITS} | looking, looking | bins | ties
            described += [
                ("threshold_sweep", "sweep", sweep | vectors, vectors["HAS_B"]),
                ("interpolate_threshold", "count", counted | vectors, vectors["HAS_B"]),
                ("interpolate_threshold", "list", listed | vectors, vectors["HAS_B"]),
            ]
        for module, name, constants, interpolates in described:
            label = f"{name}{'' if constants.get('HAS_B', True) else '-without-b'}-{constants.get('K', '')}{dtype}"
            yield pytest.param(module, name, dtype, constants, interpolates, id=label)


def signature(kernel, name, dtype, constants):
    """The types of a kernel's arguments."""
    types = (
        POINTERS
        | dict.fromkeys(("a", "b", "of_a", "of_b"), f"*{dtype}")
        | dict.fromkeys(("n", "keep", "entries"), "i64")
    )
    types |= {"x": f"*{dtype}", "out": "*i1" if name == "magnitude_mask" else f"*{dtype}"}
    return {p: "constexpr" if p in constants else types.get(p, "i32") for p in kernel.arg_names}


def compiled(module, name, dtype, constants, architecture):
    """As the launcher compiles it for vectors that PyTorch allocated, 2^26 elements long."""
    kernel = getattr(importlib.import_module(f"lpk.kernels.{module}"), f"{name}_kernel")
    types = signature(kernel, name, dtype, constants)
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, parameter in enumerate(kernel.params)
        if types[parameter.name] in ("i64", *(t for t in types.values() if t[0] == "*"))
        and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
    }
    options = OPTIONS if module in ELEMENTWISE else FOUR_WARPS
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def spills(binary, directory):
    """The instructions that move registers to the stack or from there."""
    path = directory / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", str(path)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "EXIT" in code
    return re.findall(r"\b(?:STL|LDL)\b.*", code)


# On the older architecture float32 tells enough: the 16-bit dtypes differ in how they are loaded.
@pytest.mark.parametrize(
    ("module", "name", "dtype", "constants", "interpolates", "architecture"),
    [
        pytest.param(*case.values, architecture, id=f"{case.id}-{architecture}")
        for case in kernels()
        for architecture in (80, 90)
        if architecture == 90 or case.values[2] == "fp32"
    ],
)
def test_compiles(module, name, dtype, constants, interpolates, architecture, tmp_path):
    binary = compiled(module, name, dtype, constants, architecture)
    ptx = binary.asm["ptx"]
    assert len(spills(binary, tmp_path)) <= (8 if name in ALONE else 0)
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
    if module in ELEMENTWISE:
        assert len(re.findall(r"\bsub(?:\.rn)?\.f32", ptx)) == 1


def test_under_the_interpreter(interpreted):
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    output, _ = interpreted.communicate()
    assert interpreted.returncode == 0, output
