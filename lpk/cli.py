"""The `lpk` command: the demo, its steps one by one on a run directory, and the paper's experiments.

A command imports what it needs when it runs: PyTorch takes seconds, and --help needs none of it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lpk import choices, presets, terminal, version
from lpk.options import (
    DTYPES,
    EXPERIMENTS,
    FORMATS,
    Command,
    DataPath,
    Device,
    Group,
    OwnSeed,
    PresetName,
    Quiet,
    RunPath,
    RunSeed,
    Threads,
    completion,
    named,
    user_path,
)
from lpk.pooling.methods import CRITERIA, METHODS, PRUNE, SEARCHES
from lpk.pruning.recipe import AUTOCASTS

if TYPE_CHECKING:
    from lpk.experiments import Study
    from lpk.run import Run
    from lpk.tickets.tickets import Tickets

app = typer.Typer(
    cls=Group,
    help="Lottery Pools: the tickets of iterative magnitude pruning, interpolated into stronger ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
command = functools.partial(app.command, cls=Command)
console = terminal.console()

# typer brings a click of its own, or takes the one that is installed
UsageError: type[typer.BadParameter] = typer.BadParameter.mro()[1]


def show_version(wanted: bool) -> None:
    if wanted:
        _say(f"lpk {version.OWN}, torch {installed_version('torch')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="The versions of lpk and PyTorch.")
    ] = False,
) -> None:
    pass


@command()
def backends() -> None:
    """Says which kernels are compiled in, and which of them run here."""
    from lpk import ops

    for backend, state in ops.backends().items():
        _say(f"{backend}: {state}")


@command()
def demo(
    run: RunPath = Path("lpk-demo"),
    data: DataPath = None,
    seed: OwnSeed = 0,
    preset: PresetName = "demo",
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Trains tickets on Fashion-MNIST, pools them, compares, and writes a report: the whole method in a few minutes."""
    from lpk.data import DataNotFound
    from lpk.run import Run

    _use(threads)
    try:
        with Run.create(run, presets.load(preset), seed=seed, root=data, device=device) as created:
            _demo(created, quiet)
    except DataNotFound:
        if preset != "demo":
            raise
        _say("Fashion-MNIST was not found and cannot be downloaded: using scikit-learn's handwritten digits.")
        with Run.create(run, presets.load("digits"), seed=seed, device=device) as created:
            _demo(created, quiet)


def _demo(run: Run, quiet: bool) -> None:
    from lpk.experiments import demo as one_run

    samples = run.manifest["samples"]
    _say(
        run.data.name,
        f" ({run.data.source}): {samples['train']} training, {samples['validation']} validation and {samples['test']} "
        f"test images; {run.preset.imp.rounds} rounds of pruning, seed {run.seed}",
    )
    with _keeping(functools.partial(_kept_tickets, run.path, run.preset.imp.rounds + 1)):
        results = one_run.compare(run, progress=not quiet)
    _show(run, results)


@command()
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
    """Trains, prunes and rewinds (Algorithm 1); goes on from the last finished epoch, also with more rounds."""
    from lpk.run import Run

    _use(threads)
    settings = presets.load(preset)
    if autocast is not None:
        choices.check("autocast", autocast, DTYPES)
        recipe = replace(settings.train, autocast=autocast if autocast in AUTOCASTS else None)
        settings = replace(settings, train=recipe)
    kept = functools.partial(_kept_tickets, run, settings.imp.rounds + 1)
    with _keeping(kept), Run.create(run, settings, seed=seed, root=data, device=device) as created:
        tickets = created.imp(progress=not quiet)
    _say_tickets(tickets, run)


@command(name="import")
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
    from lpk.run import Run, check_no_tickets, check_whole
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
    _say_tickets(tickets, run)


@command()
def pool(
    run: RunPath,
    target: Annotated[
        int | None, typer.Option(metavar="N", help="The round of the ticket to improve; default: every one.")
    ] = None,
    method: Annotated[str, named(f"One of {', '.join(METHODS)}.", *METHODS)] = "interpolation",
    prune: Annotated[str, named(f"One of {', '.join(PRUNE)}.", *PRUNE)] = "during",
    candidates: Annotated[
        int | None, typer.Option(metavar="N", help="How many of the nearest tickets; default: all.")
    ] = None,
    criterion: Annotated[str, named(f"What picks: {' or '.join(CRITERIA)}.", *CRITERIA)] = "accuracy",
    search: Annotated[str, named(f"One of {', '.join(SEARCHES)}.", *SEARCHES)] = "bounded",
    data: DataPath = None,
    seed: RunSeed = None,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Pools the run's tickets (Algorithms 2 and 3, or the SWA and EMA baselines)."""
    from lpk.experiments import demo as one_run
    from lpk.run import Run

    _use(threads)
    kept = f"what was there before is kept; `{terminal.command()}` begins this search again"
    with _keeping(lambda: kept), Run.open(run, seed=seed, root=data, device=device) as opened:
        options: dict[str, Any] = {
            "prune": prune,
            "candidates": candidates,
            "criterion": criterion,
            "search": search,
        }
        tickets = opened.tickets()
        for pooled in one_run.make_pools(opened, tickets, method=method, target=target, progress=not quiet, **options):
            _say(str(pooled))
    _say("Validation accuracies pick and flatter; `lpk eval` reports the test set.")


@command(name="export")
def export_network(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=user_path, help="The file to write.")],
    target: Annotated[int, typer.Option(metavar="N", help="The round of the network.")],
    method: Annotated[
        str, named(f"Of the pool: one of {', '.join(METHODS)}; or ticket.", *METHODS, "ticket")
    ] = "interpolation",
    format: Annotated[str, named(f"One of {', '.join(FORMATS)}.", *FORMATS)] = "sparse",
    data: DataPath = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT; make the directories that lead to it.")] = False,
) -> None:
    """Writes one network to a file for other programs: small, or as ONNX, a program of torch.export or a state dict."""
    from lpk import export, sparse
    from lpk.run import Run, network

    choices.check("method", method, (*METHODS, "ticket"))
    choices.check("format", format, FORMATS)
    if not force:
        _check_new(out)
    state, masks = network(run, target, method)
    if format == "sparse":
        sparse.save_sparse(out, state, masks)
    elif format == "state-dict":
        export.state_dict(state, out)
    else:
        with Run.open(run, root=data, device="cpu") as opened:
            model = opened.model()
            model.load_state_dict(state)
            write = export.onnx if format == "onnx" else export.program
            write(model, out, opened.data.shape)
    size, dense = out.stat().st_size, sum(tensor.nbytes for tensor in state.values())
    _say(f"wrote {out}: {size:,} bytes, {size / dense:.1%} of the dense network's {dense:,}")


@command(name="eval")
def evaluate(
    run: RunPath,
    data: DataPath = None,
    seed: RunSeed = None,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Test accuracies of the run's tickets and pooled networks."""
    from lpk.experiments import demo as one_run
    from lpk.run import Run

    _use(threads)
    with Run.open(run, seed=seed, root=data, device=device) as opened:
        results = one_run.evaluate(opened, progress=not quiet)
        _say_results(results)


@command(name="report")
def write_report(run: RunPath, seed: RunSeed = None) -> None:
    """Writes report.html from the run's results.json."""
    from lpk.reporting.results import PLOT, REPORT, RESULTS, Results, write
    from lpk.run import check_whole
    from lpk.tickets import files

    check_whole(run)
    results = Results.read(_existing(run / RESULTS))
    if seed is not None and seed != results["manifest"].get("seed"):
        raise ValueError(f"{run} is a run with seed {results['manifest'].get('seed')}, not {seed}")
    files.make_directory(run)
    write(results, run)
    _say(f"wrote {run / REPORT} and {PLOT}")


@command(name="run")
def run_experiment(
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
    """Carries out an experiment of the paper; started again, goes on from the last finished part."""
    from lpk import experiments
    from lpk.experiments.forecast import forecast
    from lpk.reporting.results import REPORT, RESULTS

    if show_list or name is None:
        for each, experiment in experiments.EXPERIMENTS.items():
            _say(each, f" ({experiment.shows}): {experiment.description}")
        return
    _use(threads)
    names, loaded = experiments.chosen(name), presets.load(preset)
    out = out or Path("lpk-experiments") / loaded.name
    study = experiments.Study(out, loaded, range(seeds), root=data, device=device, progress=not quiet)
    if dry_run:
        plans = {each: experiments.EXPERIMENTS[each].plan(loaded, study.seeds) for each in names}
        for line in forecast(study, plans):
            _say(line)
        return
    with _keeping(lambda: _kept_parts(study, names)):
        for each in names:
            findings = experiments.carry_out(each, study)
            _say(each, f": {findings.summary}")
            _say(f"wrote {out / each / RESULTS}, {each}.csv and {out / REPORT}")


@contextmanager
def _keeping(kept: Callable[[], str]) -> Iterator[None]:
    """An interrupt inside says what `kept` returns: what is finished, and the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(Exception):  # what is damaged is said by the next command
            raise KeyboardInterrupt(kept()) from None
        raise


def _kept_tickets(run: Path, rounds: int) -> str:
    from lpk.tickets.store import TicketStore

    try:
        count = len(TicketStore.open(run / "tickets").listed)
    except (OSError, ValueError):
        count = 0
    return f"{count} of {rounds} tickets and the finished epochs are kept; `{terminal.command()}` goes on from there"


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


def _say_tickets(tickets: Tickets, run: Path) -> None:
    _say(f"{len(tickets)} tickets, densities {tickets[0].density:.1%} to {tickets[-1].density:.1%}, in {run}/tickets")


def _show(run: Run, results: dict[str, Any]) -> None:
    from lpk.reporting.results import REPORT, write

    write(results, run.path)
    _say_results(results)
    _say(f"Open {run.path / REPORT}; the networks are in {run.path / 'pooled'}.")


def _say_results(results: dict[str, Any]) -> None:
    from lpk.reporting import report

    console.print(report.Accuracies(results))
    _say(report.summary(results))


def _say(text: str, *more: str) -> None:
    """A line that is not folded; its first part is bold where there are more."""
    console.print(terminal.bold(text, *more) if more else terminal.plain(text, keep="\n"), soft_wrap=True)


def _existing(path: Path) -> Path:
    from lpk.tickets import files

    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: run `lpk eval {path.parent}` first")
    return path


def _check_new(path: Path) -> None:
    """Raises OSError where a file is there, or its directory is not."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; --force replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no directory; --force makes it")


def _use(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    """Errors that a user can mend are one line; anything else is a bug and shows where."""
    command = typer.main.get_command(app)
    name = None
    if "_LPK_COMPLETE" in os.environ:  # the shell asks
        command(prog_name="lpk")
    try:
        # not command(): it would frame an error of the arguments in a box
        with command.make_context("lpk", sys.argv[1:] or ["--help"]) as context:
            try:
                command.invoke(context)
            finally:
                name = context.invoked_subcommand
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except UsageError as error:
        _complain(f"{_message(error)} (`lpk {f'{name} ' if name else ''}--help` says what there is)")
        sys.exit(2)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _complain(terminal.reason(error), keep="\n" if getattr(error, "many_lines", False) else "")
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or f"what was there before is kept; `{terminal.command()}` begins again"
        terminal.console(stderr=True).print(terminal.plain(f"interrupted; {kept}"), soft_wrap=True)
        sys.exit(130)
    sys.exit(0)


def _message(error: typer.BadParameter) -> str:
    """What is wrong with the arguments; an option that was meant is suggested as any other name is."""
    if close := getattr(error, "possibilities", None):
        return f"{error.message}. Did you mean {' or '.join(map(repr, close))}?"
    return error.format_message()


def _complain(text: str, keep: str = "") -> None:
    line = Text.assemble(("lpk:", "bold red"), f" {terminal.plain(text, keep)}")
    terminal.console(stderr=True).print(line, soft_wrap=True)
