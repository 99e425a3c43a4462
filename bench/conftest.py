"""What the kernel benchmarks share: their sizes, their data, how they are timed, and the ratios at the end.

`pytest bench` takes about a minute; `pytest bench --sizes full` covers sizes, densities, dtypes and
distributions. Every number is a median. The floor is the time that a plain copy would need to move the bytes
that the operation must move.
"""

import dataclasses
import time

import pytest
import torch

RESNET18 = 11_164_352  # its prunable weights
COEFFICIENTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ROUNDS = 9


@dataclasses.dataclass(frozen=True)
class Case:
    """One benchmark's vectors: how many weights, of which dtype and distribution, and their density."""

    n: int = RESNET18
    dtype: torch.dtype = torch.float32
    density: float = 0.2
    distribution: str = "normal"

    def __str__(self):
        return f"n={self.n} {str(self.dtype).removeprefix('torch.')} {self.density:.0%} {self.distribution}"

    @property
    def keep(self):
        return max(1, round(self.density * self.n))

    def vectors(self):
        """θ_best and θ_i: the second one is the first, trained a little further."""
        generator = torch.Generator().manual_seed(0)
        a = DISTRIBUTIONS[self.distribution](self.n, generator)
        noise = torch.randn(self.n, generator=generator).mul_(0.3)
        b = a.clone() if self.distribution in EXACT else a + noise.mul_(a)
        return a.to(self.dtype), b.to(self.dtype)


def mostly_zero(n, generator):
    """A ticket of an earlier round: 98% of its weights are pruned."""
    return torch.randn(n, generator=generator).mul_(torch.rand(n, generator=generator) < 0.02)


def channels(n, generator):
    """Every 64th weight far larger than the others, as where one input channel dominates."""
    return torch.randn(n, generator=generator).mul_(1 + 100 * (torch.arange(n) % 64 == 0))


DISTRIBUTIONS = {
    "normal": lambda n, generator: torch.randn(n, generator=generator),
    "heavy-tailed": lambda n, generator: torch.empty(n).cauchy_(generator=generator).clamp_(-6e4, 6e4),
    "ties": lambda n, generator: torch.randint(-8, 9, (n,), generator=generator).float(),
    "equal": lambda n, generator: torch.ones(n),
    "mostly-zero": mostly_zero,
    "channels": channels,
}
EXACT = ("ties", "equal")  # interpolated with themselves, so that the magnitudes still tie

SHORT = [Case()]
FULL = (
    [Case(n=2**exponent) for exponent in range(16, 28)]
    + [Case(density=density) for density in (0.5, 0.2, 0.05, 0.018, 0.001)]
    + [Case(dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    + [Case(distribution=distribution) for distribution in DISTRIBUTIONS if distribution != "normal"]
)


def pytest_addoption(parser):
    parser.addoption("--sizes", choices=("short", "full"), default="short", help="which kernel benchmarks to run")


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = FULL if metafunc.config.getoption("--sizes") == "full" else SHORT
        metafunc.parametrize("case", cases, ids=str, scope="module")


@pytest.fixture(scope="module")
def vectors(case):
    """The pair of vectors, made once for all the peers of a case."""
    return case.vectors()


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture
def measure(benchmark, case):
    """Times one contestant of an operation: `lpk`, a peer, or `copy`, which the floor is derived from."""

    def run(operation, contestant, call, *, moved, coefficients=1):
        """`moved`: the bytes that must move for each of the `coefficients` that one call answers."""
        benchmark.group = f"{operation} {case}"
        benchmark.extra_info.update(
            operation=operation,
            contestant=contestant,
            n=case.n,
            dtype=str(case.dtype).removeprefix("torch."),
            distribution=case.distribution,
            keep=case.keep,
            K=coefficients,
            bytes=moved,
            threads=torch.get_num_threads(),
        )
        seconds = min(timed(call) for _ in range(2))  # the first call touches the memory for the first time
        # A call too short for the clock is repeated within the round; a very long one has fewer rounds.
        benchmark.pedantic(
            call,
            rounds=ROUNDS if seconds < 3 else 3,
            iterations=max(1, int(0.005 / seconds)),
        )

    return run


def pytest_terminal_summary(terminalreporter, config):
    """For each group: every peer's time over lpk's, and lpk's over the floor, all per coefficient."""
    session = getattr(config, "_benchmarksession", None)
    groups = {}
    for run in session.benchmarks if session else []:
        if run.stats and "contestant" in run.extra_info:
            info = run.extra_info
            groups.setdefault(run.group, {})[info["contestant"]] = (
                run.stats.median / info["K"],
                info["bytes"],
            )
    rows = [row for group, medians in groups.items() for row in ratios(group, medians)]
    if rows:
        terminalreporter.section("medians per coefficient")
        for name, milliseconds, to_lpk, to_floor in [("", "ms", "/ lpk", "/ floor"), *rows]:
            terminalreporter.write_line(f"{name:40}{milliseconds:>12}{to_lpk:>10}{to_floor:>10}".rstrip())


def ratios(group, medians):
    """A heading and a line for each contestant: name, milliseconds, time / lpk's time, time / floor."""
    lpk = medians.get("lpk", (None,))[0]
    copy, copied = medians.get("copy", (None, 1))
    yield group, "", "", ""
    for contestant, (seconds, moved) in medians.items():
        yield (
            "  " + contestant,
            f"{seconds * 1e3:.3f}",
            f"{seconds / lpk:.2f}" if lpk else "",
            f"{seconds / (copy * moved / copied):.2f}" if copy else "",
        )
