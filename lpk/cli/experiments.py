"""The paper's figures and tables: `lpk run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lpk import presets, terminal
from lpk.cli.output import keeping, say, use_threads
from lpk.options import EXPERIMENTS, DataPath, Device, PresetName, Quiet, Threads, completion, user_path

if TYPE_CHECKING:
    from lpk.experiments import Study


def run(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="An experiment, or all of the paper; see --list.",
            autocompletion=completion(EXPERIMENTS),
        ),
    ] = None,
    preset: PresetName = "demo",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many: seeds 0, 1, 2, …")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=user_path, help="Default: PRESET in lpk-experiments. Experiments share its tickets."
        ),
    ] = None,
    data: DataPath = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is missing and how long it takes.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Carries out an experiment of the paper; started again, goes on from the last finished part.

    Started by torchrun, its processes share the tickets and parts: see docs/distributed.md.
    """
    from lpk import experiments
    from lpk.distributed import launched
    from lpk.experiments.forecast import forecast
    from lpk.reporting import plots
    from lpk.reporting.results import REPORT, RESULTS

    if show_list or name is None:
        for each, experiment in experiments.EXPERIMENTS.items():
            say(each, f" ({experiment.shows}): {experiment.description}")
        return
    use_threads(threads)
    names, loaded = experiments.chosen(name), presets.load(preset)
    out = out or Path("lpk-experiments") / loaded.name
    study = experiments.Study(out, loaded, range(seeds), root=data, device=device, progress=not quiet)
    if dry_run:
        plans = {each: experiments.EXPERIMENTS[each].plan(loaded, study.seeds) for each in names}
        for line in forecast(study, plans):
            say(line)
        return
    plots.need()
    with keeping(lambda: _kept_parts(study, names)):
        with launched(device):
            experiments.share_out(names, study)
        if terminal.rank():
            return  # the first shows what all have found
        for each in names:
            findings = experiments.carry_out(each, study)
            say(each, f": {findings.summary}")
            say(f"wrote {out / each / RESULTS}, {each}.csv and {out / REPORT}")


def _kept_parts(study: Study, names: Sequence[str]) -> str:
    from lpk.experiments import EXPERIMENTS
    from lpk.experiments.study import groups

    plans = {name: EXPERIMENTS[name].plan(study.preset, study.seeds) for name in names}
    parts = [part for name, plan in plans.items() for group in groups(plan) for part in study.finished(name, group)]
    count = sum(part is not None for part in parts)
    return (
        f"{count} of {len(parts)} parts and the finished tickets and epochs are kept; "
        f"`{terminal.command()}` goes on from there"
    )
