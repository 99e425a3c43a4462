"""Prints, as a Markdown table, what is asked of the kernels on an H100, and what a results file says of it.

python -m bench.bars [results.json]

Without a file it is this machine's in bench/results, which `pytest bench -k cuda --results bench/results` writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.cases import COMPARABLE, LARGE
from bench.results import Row, describe, machine, slug, three
from lpk.tickets import files

HERE = Path(__file__).parent
WORDS = {1: "one coefficient", 11: "eleven coefficients"}


class Bar(NamedTuple):
    """`limit`: the most that is allowed, in `unit`; `measured`: None where no row tells."""

    what: str
    limit: float
    unit: str
    measured: float | None

    def line(self) -> str:
        asked = f"{self.limit:g} {self.unit}".rstrip()
        if self.measured is None:
            return f"| {self.what} | {asked} | not measured | |"
        return f"| {self.what} | {asked} | {three(self.measured)} | {'yes' if self.measured <= self.limit else 'no'} |"


def bars(result: Row) -> Iterator[Bar]:
    def found(operation: str, peer: str, key: str = "milliseconds", **others: object) -> float | None:
        usual = {"device": "cuda", "dtype": "float32", "density": 0.2, "distribution": "normal"}
        asked = usual | {"operation": operation, "peer": peer} | others
        return next((row[key] for row in result["rows"] if row | asked == row), None)

    one, eleven = {"n": LARGE, "coefficients": 1}, {"n": LARGE, "coefficients": 11}
    yield Bar("interpolate_prune, one coefficient, 2^26", 0.53, "ms", found("interpolate_prune", "lpk", **one))
    each = found("interpolate_threshold", "lpk", **eleven)
    yield Bar("interpolate_threshold, eleven coefficients, all of them, 2^26", 0.55, "ms", times(each, 11))
    floors = found("interpolate_prune", "lpk", "to_floor", **eleven)
    yield Bar("interpolate_prune_all, eleven coefficients, 2^26, over a copy's floor", 1.5, "", floors)
    for function in COMPARABLE:
        host = found(f"host, {function}", "lpk")
        yield Bar(f"{function}, until a call returns, 2^10", 15, "µs", times(host, 1000))
    for function, peer in COMPARABLE.items():
        own, other = (found(f"call, {function}", name) for name in ("lpk", peer))
        yield Bar(f"{function}, one coefficient, 2^20, over {peer}", 2, "", ratio(own, other))
    for operation in ("interpolate_threshold", "interpolate_prune"):
        for asked in (one, eleven):
            own, other = (found(operation, name, **asked) for name in ("lpk", "lpk.triton"))
            name = f"{operation}_all" if operation == "interpolate_prune" and asked is eleven else operation
            yield Bar(f"{name}, {WORDS[asked['coefficients']]}, 2^26, Triton over CUDA", 1.3, "", ratio(other, own))


def times(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def ratio(number: float | None, other: float | None) -> float | None:
    return None if number is None or other is None else number / other


def table(result: Row) -> str:
    all_of_them = list(bars(result))
    met = sum(bar.measured is not None and bar.measured <= bar.limit for bar in all_of_them)
    lines = ["| float32, 20% kept | at most | measured | met |", "|---|---:|---:|---|"]
    lines += [bar.line() for bar in all_of_them]
    measured = f"Medians of `pytest bench -k cuda` on {describe(result['machine'], 'cuda')}, {result['date']}."
    return "\n".join([*lines, "", f"{met} of {len(all_of_them)} met. {measured}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.bars")
    parser.add_argument("results", nargs="?", type=Path, help="default: this machine's file in bench/results")
    path = parser.parse_args().results or HERE / "results" / f"{slug(machine())}.json"
    print(table(files.read_json(path)), end="")


if __name__ == "__main__":
    main()
