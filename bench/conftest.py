"""How the kernel benchmarks are timed, and the ratios at the end.

`pytest bench` takes a minute and a half; `pytest bench --sizes full` covers sizes, densities, dtypes, distributions,
coefficient counts and threads. `--results DIR` writes the rows to DIR/<machine>.json. Where PyTorch finds a GPU, every
operation is measured there too, and what a call costs there alone. Every number is a median. The floor is the time that
a plain copy on the same device would need to move the bytes that the operation must move.
"""

import contextlib
import itertools
import time
from pathlib import Path

import pytest
import torch

from bench import results
from bench.cases import cases, dtype_name, vectors
from lpk import _core

ROUNDS = 9
SECONDS = 2  # what one contestant may take, unless its call alone takes longer


def pytest_addoption(parser):
    parser.addoption("--sizes", choices=("short", "full"), default="short", help="which kernel benchmarks to run")
    parser.addoption("--results", type=Path, help="the directory that this machine's results are written to")


def pytest_generate_tests(metafunc):
    """Crosses the cases of a module's operation with its CONTESTANTS."""
    if "contestant" in metafunc.fixturenames:
        operation = metafunc.function.__name__.removeprefix("test_")
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        pairs = [
            (case, contestant)
            for device in devices
            for case in cases(operation, metafunc.config.getoption("--sizes"), device)
            for contestant in case.contestants(metafunc.module.CONTESTANTS)
        ]
        metafunc.parametrize("case, contestant", pairs, ids=[f"{case} {contestant}" for case, contestant in pairs])


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


def clock():
    """The time when all work that was given to the GPU is done, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@pytest.fixture
def pair(case):
    """θ_best and θ_i, made once for all contestants."""
    return vectors(case.n, case.dtype, case.distribution, case.density, case.device)


@pytest.fixture
def measure(benchmark, request, case, contestant):
    """Times one contestant: `lpk` (in one way or another), a peer, or `copy`, which the floor is derived from."""

    def run(call, *, moved, answered=1):
        """`moved`: the bytes that must move for a coefficient; `answered`: how many coefficients one call answers."""
        operation = request.function.__name__.removeprefix("test_")
        benchmark.group = f"{operation} {case}"
        # A peer's scratch tensors belong on the device too. lpk needs no such help.
        place = contextlib.nullcontext() if contestant.startswith("lpk") else torch.device(case.device)
        with threads(case.threads), place, backend(contestant):
            benchmark.extra_info.update(
                operation=operation,
                peer=contestant,
                device=case.device,
                n=case.n,
                dtype=dtype_name(case.dtype),
                density=case.density,
                coefficients=case.coefficients,
                distribution=case.distribution,
                threads=torch.get_num_threads() if case.device == "cpu" else None,
                moved=moved,
                answered=answered,
            )
            try:
                seconds = min(timed(call) for _ in range(2))  # the first call touches the memory for the first time
            except NotImplementedError as error:
                pytest.skip(f"not on {case.device}: {error}".partition("\n")[0])
            # A call too short for the clock is repeated within the round; a very long one has fewer rounds.
            benchmark.pedantic(
                call,
                rounds=max(3, min(ROUNDS, int(SECONDS / seconds))),
                iterations=max(1, int(0.005 / seconds)),
            )

    return run


def timed(call):
    start = clock()
    call()
    return clock() - start


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def backend(contestant):
    """`lpk.triton` is what runs on a GPU where the CUDA kernels were not compiled."""
    compiled = _core.cuda_compiled
    _core.cuda_compiled = compiled and contestant != "lpk.triton"
    try:
        yield
    finally:
        _core.cuda_compiled = compiled


def pytest_terminal_summary(terminalreporter, config):
    """For each question: every contestant's time, over lpk's and over the floor, all per coefficient."""
    session = getattr(config, "_benchmarksession", None)
    rows = results.rows_of(session.benchmarks if session else [])
    if not rows:
        return
    terminalreporter.section("medians per coefficient; of host and call: per call")
    terminalreporter.write_line(f"{'':40}{'ms':>12}{'/ lpk':>10}{'/ floor':>10}")
    for asked, group in itertools.groupby(rows, results.question):
        terminalreporter.write_line(" ".join(str(part) for part in asked if part is not None))
        for row in group:
            ratios = "".join(f"{row[key]:>10.2f}" if row[key] else f"{'':10}" for key in ("to_lpk", "to_floor"))
            terminalreporter.write_line(f"  {row['peer']:38}{row['milliseconds']:>12.4g}{ratios}".rstrip())
    if directory := config.getoption("--results"):
        terminalreporter.write_line(f"written: {results.write(directory, rows)}")
