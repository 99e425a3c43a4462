"""lpk's search beside the paper's procedure in plain PyTorch, on the same tickets.

python -m bench.search [--seeds 0 1 2] [--results bench/results]
python -m bench.search --preset bench/h100.toml --results bench/results       where there is a GPU

For each seed, tickets of Fashion-MNIST are trained (once: they stay in the run directory), and pooled. What is measured
then stands in bench/search_cpu.py and bench/search_gpu.py. The results file is written after every row: rows of an
earlier run of the same preset stay until they are measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import lpk
from bench import search_cpu, search_gpu, search_gpu_words
from bench.results import Row, machine, slug
from bench.results_file import ResultsFile
from lpk import presets
from lpk.presets import Preset
from lpk.run import Run

PRESET = Path(__file__).with_name("search.toml")


def main() -> None:
    parser = arguments()
    given = parser.parse_args()
    if given.peak:
        print(json.dumps(search_cpu.peak(given.runs, given.peak, given.targets[0])))
        return
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if problem := misuse(given, device):
        parser.error(problem)
    preset = presets.load(given.preset)
    if given.rounds is not None:
        preset = replace(preset, imp=replace(preset.imp, rounds=given.rounds))
    measure, shown = (on_cpu, search_cpu.table) if device.type == "cpu" else (on_gpu, search_gpu_words.table)
    file = measure(given, preset, device)
    print("\n" + shown(file.result))
    if file.path:
        print(f"written: {file.path}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.search")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, on a GPU 0")
    parser.add_argument("--preset", default=str(PRESET), help="a preset's name or a TOML file")
    parser.add_argument("--runs", type=Path, default=Path("build/search"), help="where the tickets are kept")
    parser.add_argument("--rounds", type=int, help="in place of the preset's: fewer tickets are made sooner")
    parser.add_argument("--targets", type=int, nargs="+", help="rounds; default: the first, a middle and the last one")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parts = f"default: all, that is {', '.join(search_cpu.PARTS)}, on a GPU {', '.join(search_gpu.PARTS)}"
    both = dict.fromkeys((*search_cpu.PARTS, *search_gpu.PARTS))
    parser.add_argument("--parts", nargs="+", choices=tuple(both), help=f"what to measure; {parts}")
    parser.add_argument("--candidates", type=int, help="how many of the nearest; default: all")
    parser.add_argument("--results", type=Path, help="the directory that search-<machine>.json is written to")
    parser.add_argument("--peak", choices=("single", "pool"), help=argparse.SUPPRESS)
    of_cpu = parser.add_argument_group("on a CPU")
    of_cpu.add_argument(
        "--keep-reference", action="store_true", help="measure lpk again, beside the reference's earlier measurement"
    )
    of_gpu = parser.add_argument_group("on a GPU")
    of_gpu.add_argument(
        "--autocast",
        nargs="+",
        choices=tuple(search_gpu.DTYPES),
        help="what to compute in, float32 being without autocast; default: each of them",
    )
    of_gpu.add_argument(
        "--reference-networks",
        type=int,
        metavar="N",
        default=search_gpu.REFERENCE_NETWORKS,
        help="how many of the reference's networks are measured, the others being extrapolated, 1 to "
        f"{len(lpk.COEFFICIENTS)}; 0: all are; default: %(default)s",
    )
    return parser


def misuse(given: argparse.Namespace, device: torch.device) -> str | None:
    """What was asked for that is not possible on this device; None if all of it is."""
    cpu = device.type == "cpu"
    possible = search_cpu.PARTS if cpu else search_gpu.PARTS
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"--device is {given.device}, but PyTorch finds no GPU here"
    if wrong := [part for part in given.parts or () if part not in possible]:
        return f"--parts has {wrong[0]}; of {device}, {', '.join(possible)} are measured"
    if cpu and given.autocast:
        return "--autocast is for a GPU"
    if not cpu and given.keep_reference:
        return "--keep-reference is for a CPU; on a GPU leave references out of --parts"
    if not 0 <= given.reference_networks <= len(lpk.COEFFICIENTS):
        return f"--reference-networks is {given.reference_networks}; 0 to {len(lpk.COEFFICIENTS)} is possible"
    return None


def on_cpu(given: argparse.Namespace, preset: Preset, device: torch.device) -> ResultsFile:
    parts = given.parts or search_cpu.PARTS
    file = results_file(given.results, machine() | {"gpu": None}, {"preset": preset.to_dict()}, parts=search_cpu.PARTS)
    for seed in [0, 1, 2] if given.seeds is None else given.seeds:
        with Run.create(given.runs / f"{preset.name}-{seed}", preset, seed=seed, device=str(device)) as run:
            run.imp()
            search_cpu.measure(
                run,
                file,
                targets=targets(given, preset),
                parts=parts,
                candidates=given.candidates,
                keep_reference=given.keep_reference,
            )
        if "peak_memory" in parts:
            file.keep("peak_memory", {"seed": seed, **search_cpu.peaks_of(run.path, preset.imp.rounds)})
    return file


def on_gpu(given: argparse.Namespace, preset: Preset, device: torch.device) -> ResultsFile:
    head = {"benchmark": "search-gpu", "preset": preset.to_dict()}
    file = results_file(given.results, machine(), head, parts=search_gpu.PARTS)
    for seed in [0] if given.seeds is None else given.seeds:
        with Run.create(given.runs / f"{preset.name}-{seed}", preset, seed=seed, device=str(device)) as run:
            began = time.perf_counter()
            run.imp()
            print(f"seed {seed}: {preset.imp.rounds + 1} tickets in {time.perf_counter() - began:.0f} s", flush=True)
            search_gpu.measure(
                search_gpu.Contest(run, given.candidates),
                file,
                targets=targets(given, preset),
                dtypes=given.autocast or tuple(search_gpu.DTYPES),
                parts=given.parts or search_gpu.PARTS,
                networks=given.reference_networks,
            )
    return file


def targets(given: argparse.Namespace, preset: Preset) -> list[int]:
    return given.targets or [0, preset.imp.rounds // 2, preset.imp.rounds]


def results_file(directory: Path | None, here: Row, head: Row, *, parts: Sequence[str]) -> ResultsFile:
    path = directory / f"search-{slug(here)}.json" if directory else None
    return ResultsFile(path, {"machine": here} | head, parts)


if __name__ == "__main__":
    main()
