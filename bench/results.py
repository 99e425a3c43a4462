"""What a benchmark run measured, as rows, and bench/results/<machine>.json, the file that keeps them."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import lpk
from lpk import ops
from lpk.tickets import files
from lpk.tickets.versions import processor

Row = dict[str, Any]
QUESTION = ("operation", "device", "n", "dtype", "density", "coefficients", "distribution", "threads")


def rows_of(benchmarks: Iterable[Any]) -> list[Row]:
    """One row for each of pytest-benchmark's results, with its ratios to lpk and to the copy floor of its question.

    Times are medians and interquartile ranges, in milliseconds per coefficient; those of bench/test_calls.py per call.
    """
    rows, words, baselines = [], [], {}
    for run in benchmarks:
        if run.stats and "peer" in run.extra_info:
            info = dict(run.extra_info)
            moved, answered = info.pop("moved"), info.pop("answered")
            scale = 1e3 / answered
            row = info | {
                "milliseconds": significant(run.stats.median * scale),
                "iqr": significant(run.stats.iqr * scale),
                "rounds": run.stats.rounds,
            }
            rows.append(row)
            words.append(moved)
            baselines[question(row), row["peer"]] = row["milliseconds"], moved
    for row, moved in zip(rows, words, strict=True):
        lpk_time, _ = baselines.get((question(row), "lpk"), (None, None))
        copy, copied = baselines.get((question(row), "copy"), (None, None))
        row["to_lpk"] = significant(row["milliseconds"] / lpk_time) if lpk_time else None
        row["to_floor"] = significant(row["milliseconds"] / (copy * moved / copied)) if copy else None
    return rows


def question(row: Row) -> tuple[Any, ...]:
    """What contestants must have in common to be compared."""
    return tuple(row[key] for key in QUESTION)


def significant(number: float) -> float:
    """Four digits: more would only be noise."""
    return float(f"{number:.4g}")


def three(number: float) -> str:
    """Three digits, without an exponent: 0.0123, 1.23, 12.3, 123, 1,230."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:#.3g}".rstrip(".")


def machine() -> Row:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(),
        "instruction_set": ops.instruction_set(),
        "threads": torch.get_num_threads(),
        "memory": f"{memory / 2**30:.0f} GiB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "lpk": lpk.__version__,
    }


def slug(machine: Row) -> str:
    """The machine's name in a file's name: amd-epyc-avx512-2threads, or that of its GPU."""
    name = machine["gpu"] or "{processor} {instruction_set} {threads}threads".format(**machine)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(directory: Path, rows: list[Row]) -> Path:
    """Replaces this machine's file, whole or not at all; a row a line, so that versions can be compared."""
    here = machine()
    head = {"machine": here, "date": datetime.date.today().isoformat()}
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    path = directory / f"{slug(here)}.json"
    files.make_directory(directory)
    files.write_bytes(path, f'{json.dumps(head, indent=2)[:-2]},\n  "rows": [\n{lines}\n  ]\n}}\n'.encode())
    return path


def describe(machine: Row, device: str) -> str:
    """What the rows of a device were measured on, in words."""
    software = f"PyTorch {machine['torch']}, lpk {machine['lpk']}"
    if device == "cuda":
        return f"{machine['gpu']}, {software}"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['processor']}, {machine['instruction_set']}, {threads}, {software}"
