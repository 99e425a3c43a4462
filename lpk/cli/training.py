"""What makes tickets: `lpk demo`, `lpk imp`, `lpk import`."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpk import choices, presets, terminal
from lpk.cli.output import keeping, say, say_results, say_tickets, use_threads
from lpk.options import (
    DTYPES,
    DataPath,
    Device,
    NoLatency,
    OwnSeed,
    PresetName,
    Quiet,
    RunPath,
    Threads,
    named,
    user_path,
)
from lpk.pruning.recipe import AUTOCASTS

if TYPE_CHECKING:
    from lpk.run import Run


def demo(
    run: RunPath = Path("lpk-demo"),
    data: DataPath = None,
    seed: OwnSeed = 0,
    preset: PresetName = "demo",
    threads: Threads = None,
    device: Device = None,
    no_latency: NoLatency = False,
    quiet: Quiet = False,
) -> None:
    """Trains tickets on Fashion-MNIST, pools them, compares, and writes a report: the whole method in a few minutes."""
    from lpk.data import DataNotFound
    from lpk.reporting import plots
    from lpk.run import Run

    plots.need()
    use_threads(threads)
    try:
        with Run.create(run, presets.load(preset), seed=seed, root=data, device=device) as created:
            _demo(created, quiet, not no_latency)
    except DataNotFound:
        if preset != "demo":
            raise
        say("Fashion-MNIST was not found and cannot be downloaded: using scikit-learn's handwritten digits.")
        with Run.create(run, presets.load("digits"), seed=seed, device=device) as created:
            _demo(created, quiet, not no_latency)


def _demo(run: Run, quiet: bool, latency: bool) -> None:
    from lpk.experiments import demo as one_run

    samples = run.manifest["samples"]
    say(
        run.data.name,
        f" ({run.data.source}): {samples['train']} training, {samples['validation']} validation and {samples['test']} "
        f"test images; {run.preset.imp.rounds} rounds of pruning, seed {run.seed}",
    )
    with keeping(functools.partial(_kept_tickets, run.path, run.preset.imp.rounds + 1)):
        results = one_run.compare(run, latency=latency, progress=not quiet)
    show(run, results)


def imp(
    run: RunPath,
    preset: PresetName = "demo",
    autocast: Annotated[
        str | None,
        named(f"What a new run is trained in, {' or '.join(DTYPES)}; default: what the preset says.", *DTYPES),
    ] = None,
    data: DataPath = None,
    seed: OwnSeed = 0,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Trains, prunes and rewinds (Algorithm 1); goes on from the last finished epoch, also with more rounds.

    Started by torchrun, its processes share every batch: see docs/distributed.md.
    """
    from lpk.distributed import launched
    from lpk.run import Run

    use_threads(threads)
    settings = presets.load(preset)
    if autocast is not None:
        choices.check("autocast", autocast, DTYPES)
        recipe = replace(settings.train, autocast=autocast if autocast in AUTOCASTS else None)
        settings = replace(settings, train=recipe)
    kept = functools.partial(_kept_tickets, run, settings.imp.rounds + 1)
    with (
        keeping(kept),
        launched(device),
        Run.create(run, settings, seed=seed, root=data, device=device) as created,
    ):
        tickets = created.imp(progress=not quiet)
    say_tickets(tickets, run)


def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            parser=user_path,
            help="Checkpoints, dense to sparse; a folder of them; or an OpenLTH run.",
        ),
    ],
    run: RunPath,
    preset: Annotated[
        str | None, named("Names the data set and the network, for `lpk pool` and `lpk eval`.", *presets.names())
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The network, where it is not the preset's: torchvision/NAME, timm/NAME, …"),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where the state dict stands in each PyTorch file, if there are several."),
    ] = None,
    data: DataPath = None,
    seed: OwnSeed = 0,
    device: Device = None,
) -> None:
    """Makes tickets of networks that others pruned; docs/import.md says which files are read."""
    from lpk.directory import check_whole
    from lpk.run import Run, check_no_tickets
    from lpk.tickets import files
    from lpk.tickets.tickets import Tickets

    if preset is None:
        if model is not None:
            raise ValueError("--model needs --preset, which names the data set")
        tickets = Tickets.from_checkpoints(sources, key=key)
        check_whole(run)
        with files.locked(run):
            check_no_tickets(run)
            tickets.save(run / "tickets")
    else:
        settings = presets.load(preset)
        if model is not None:
            settings = replace(settings, model=presets.ModelPreset(model, {}))
        with Run.create(run, settings, seed=seed, root=data, device=device, imported=sources, key=key) as created:
            tickets = created.tickets()
    say_tickets(tickets, run)


def _kept_tickets(run: Path, rounds: int) -> str:
    from lpk.tickets.store import TicketStore

    try:
        count = len(TicketStore.open(run / "tickets").listed)
    except (OSError, ValueError):
        count = 0
    return f"{count} of {rounds} tickets and the finished epochs are kept; `{terminal.command()}` goes on from there"


def show(run: Run, results: dict[str, Any]) -> None:
    from lpk.reporting.results import REPORT, write

    write(results, run.path)
    say_results(results)
    say(f"Open {run.path / REPORT}; the networks are in {run.path / 'pooled'}.")
