"""Prints how long each phase of the search for thresholds takes on a GPU, from the stamps that its kernel leaves.

python -m bench.phases [--n N]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence

import torch

from bench.cases import LARGE, PAPER, vectors
from lpk import _core
from lpk.ops import gpu
from lpk.ops.memory import at

# In the order of search_kernel (csrc/cuda/interpolate_threshold.cu); others follow where the bracket does not tell.
PHASES = ("clear, gather", "sample", "near the ends", "bracket", "sweep", "histogram", "list", "select")
WITHOUT_BRACKET = ("clear", "sweep", "histogram", "list", "select")  # of a short vector and one coefficient
ROUNDS = 9


def durations(stamps: Sequence[int]) -> list[int]:
    """How long each phase took, in clocks. stamps: when each began, and the end; zeros after it."""
    known = [stamp for stamp in stamps if stamp]
    return [end - begin for begin, end in itertools.pairwise(known)]


def table(columns: dict[str, list[list[int]]], microseconds: dict[str, float]) -> str:
    """A Markdown table of the phases' medians.

    columns: for each heading, every round's durations in clocks.
    microseconds: what a round takes altogether, which tells how long a clock is.
    """
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    shares = {}
    for heading, rounds in columns.items():
        medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
        shares[heading] = [microseconds[heading] * clocks / sum(medians) for clocks in medians]
    most = max(map(len, shares.values()))
    known = PHASES if most >= len(PHASES) else WITHOUT_BRACKET
    for place in range(most):
        name = known[place] if place < len(known) else f"further phase {place - len(known) + 1}"
        numbers = [f"{own[place]:.1f}" if place < len(own) else "" for own in shares.values()]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    lines.append(f"| all | {' | '.join(f'{microseconds[heading]:.1f}' for heading in columns)} |")
    return "\n".join(lines) + "\n"


def measure(n: int, alphas: Sequence[float]) -> tuple[list[list[int]], float]:
    """Of ROUNDS searches: each phase's clocks, and the median time of the whole kernel in microseconds."""
    a, b = vectors(n, torch.float32, "normal", 0.2, "cuda")
    values, last = a.new_empty(len(alphas)), a.new_empty(len(alphas), dtype=torch.int64)
    workspace = a.new_empty(_core.cuda_workspace_bytes(n, len(alphas)), dtype=torch.uint8)
    offset = _core.cuda_phases(at(workspace), n, len(alphas))
    stamps = workspace[offset : offset + 128].view(torch.int64)
    rounds, times = [], []
    for _ in range(1 + ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        numbers = (list(alphas), 0), len(alphas), n // 5, at(workspace)
        _core.cuda_interpolate_threshold(at(values), at(last), at(a), at(b), *gpu._vector(a), *numbers)
        end.record()
        end.synchronize()
        rounds.append(durations(stamps.tolist()))
        times.append(1000 * begin.elapsed_time(end))
    return rounds[1:], statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.phases")
    parser.add_argument("--n", type=int, default=LARGE, help="the size of the vectors (default: 2^26)")
    n = parser.parse_args().n
    columns, microseconds = {}, {}
    for heading, alphas in (("one coefficient, µs", PAPER[5:6]), ("eleven, µs", PAPER)):
        columns[heading], microseconds[heading] = measure(n, alphas)
    print(f"The search for thresholds, {n:,} float32 values, 20% kept, on {torch.cuda.get_device_name()}:\n")
    print(table(columns, microseconds), end="")


if __name__ == "__main__":
    main()
