"""What makes the better pool: test accuracies of several ways to choose it, on the tickets of bench.search.

python -m bench.methods [--seeds 0 1 2]

The mean over all targets of each seed. Nothing is chosen by a test accuracy; this table only reports them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lpk
from bench.search import PRESET
from bench.search_cpu import test_accuracy
from lpk import presets
from lpk.run import Run

VARIANTS: dict[str, dict[str, Any]] = {
    "Algorithm 2": {},
    "Algorithm 2 by the loss": {"criterion": "loss"},
    "Algorithm 3": {"method": "average"},
    "Algorithm 3 by the loss": {"method": "average", "criterion": "loss"},
    "SWA": {"method": "swa"},
    "EMA": {"method": "ema"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default=str(PRESET), help="a preset's name or a TOML file")
    parser.add_argument("--runs", type=Path, default=Path("build/search"), help="where the tickets are kept")
    given = parser.parse_args()
    preset = presets.load(given.preset)
    table: dict[str, list[float]] = {name: [] for name in ("tickets", *VARIANTS)}
    seconds: dict[str, float] = dict.fromkeys(table, 0.0)
    for seed in given.seeds:
        with Run.create(given.runs / f"{preset.name}-{seed}", preset, seed=seed) as run:
            tickets = run.imp()
            table["tickets"].append(mean_accuracy(run, [ticket.state_dict for ticket in tickets]))
            for name, options in VARIANTS.items():
                began = time.perf_counter()
                made = lpk.pool(
                    tickets,
                    model=run.model(),
                    validation=run.data.validation.loader(256),
                    calibration=run.calibration().loader(256),
                    progress=False,
                    **options,
                )
                seconds[name] += (time.perf_counter() - began) / len(given.seeds)
                table[name].append(mean_accuracy(run, [pooled.state_dict for pooled in made]))
                print(f"seed {seed}, {name}: {table[name][-1]:.2%}", file=sys.stderr, flush=True)
    print(f"| | {' | '.join(f'seed {seed}' for seed in given.seeds)} | mean | seconds |")
    print("|---" + "|---:" * (len(given.seeds) + 2) + "|")
    for name, found in table.items():
        cells = [f"{accuracy:.2%}" for accuracy in (*found, statistics.mean(found))]
        print(f"| {name} | {' | '.join(cells)} | {seconds[name]:.0f} |")


def mean_accuracy(run: Run, states: list[Any]) -> float:
    return statistics.mean(test_accuracy(run, state) for state in states)


if __name__ == "__main__":
    main()
