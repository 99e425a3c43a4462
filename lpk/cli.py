"""The `lpk` command: the demo, its steps one by one on a run directory, and the paper's experiments.

A command imports what it needs when it runs: PyTorch takes seconds, and --help needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lpk import presets, terminal, version
from lpk.pooling.methods import CRITERIA, METHODS, PRUNE, SEARCHES
from lpk.pruning.recipe import AUTOCASTS

if TYPE_CHECKING:
    from lpk.run import Run
    from lpk.tickets.tickets import Tickets

FORMATS = ("sparse", "onnx", "torch", "state-dict")
DTYPES = (*AUTOCASTS, "float32")  # what a preset can be told to train in

app = typer.Typer(
    help="Lottery Pools: the tickets of iterative magnitude pruning, interpolated into stronger ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = terminal.console()

# typer brings a click of its own, or takes the one that is installed
UsageError: type[typer.BadParameter] = typer.BadParameter.mro()[1]

KEPT = {  # what an interrupted command leaves, and how to go on
    "imp": "the finished rounds and epochs are kept: the same command goes on from there",
    "demo": "the finished rounds and epochs are kept: the same command goes on from there",
    "run": "the finished rounds, epochs and parts are kept: the same command goes on from there",
    "pool": "what was there before is kept: the same command begins this search again",
}


def user_path(text: str | Path) -> Path:
    """A path of the command line; the shell does not expand every `~`."""
    if not str(text):
        raise typer.BadParameter("a path is empty; `.` is the present directory")
    return Path(text).expanduser()


RunPath = Annotated[Path, typer.Argument(metavar="RUN", parser=user_path, help="The run directory.")]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        parser=user_path,
        help="Where the data set lies; else LPK_DATA, the cache, the system, a download.",
    ),
]
OwnSeed = Annotated[int, typer.Option("--seed", help="Of initialization, data split and order of the samples.")]
RunSeed = Annotated[int | None, typer.Option("--seed", help="Checked against the run's own seed, where given.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="How many threads to use; default: PyTorch's.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, …; default: a GPU where there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


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


@app.command()
def backends() -> None:
    """Says which kernels are compiled in, and which of them run here."""
    from lpk import ops

    for backend, state in ops.backends().items():
        _say(f"{backend}: {state}")


@app.command()
def demo(
    run: RunPath = Path("lpk-demo"),
    data: DataPath = None,
    seed: OwnSeed = 0,
    preset: Annotated[str, typer.Option(help="A preset's name or a TOML file.")] = "demo",
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
    results = one_run.compare(run, progress=not quiet)
    _show(run, results)


@app.command()
def imp(
    run: RunPath,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(presets.names())}; or a TOML file.")] = "demo",
    autocast: Annotated[
        str | None,
        typer.Option(help=f"What a new run is trained in, {' or '.join(DTYPES)}; default: what the preset says."),
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
        _check_choice("autocast", autocast, DTYPES)
        recipe = replace(settings.train, autocast=autocast if autocast in AUTOCASTS else None)
        settings = replace(settings, train=recipe)
    with Run.create(run, settings, seed=seed, root=data, device=device) as created:
        tickets = created.imp(progress=not quiet)
    _say_tickets(tickets, run)


@app.command(name="import")
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
        str | None, typer.Option(help="Names the data set and the network, for `lpk pool` and `lpk eval`.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network, where it is not the preset's: torchvision/NAME, timm/NAME, …")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Where the state dict stands in each PyTorch file, if there are several.")
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


@app.command()
def pool(
    run: RunPath,
    target: Annotated[int | None, typer.Option(help="The round of the ticket to improve; default: every one.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "interpolation",
    prune: Annotated[str, typer.Option(help=f"One of {', '.join(PRUNE)}.")] = "during",
    candidates: Annotated[int | None, typer.Option(help="How many of the nearest tickets; default: all.")] = None,
    criterion: Annotated[str, typer.Option(help=f"What picks: {' or '.join(CRITERIA)}.")] = "accuracy",
    search: Annotated[str, typer.Option(help=f"One of {', '.join(SEARCHES)}.")] = "bounded",
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
    with Run.open(run, seed=seed, root=data, device=device) as opened:
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


@app.command(name="export")
def export_network(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=user_path, help="The file to write.")],
    target: Annotated[int, typer.Option(help="The round of the network.")],
    method: Annotated[
        str, typer.Option(help=f"Of the pool: one of {', '.join(METHODS)}; or ticket.")
    ] = "interpolation",
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "sparse",
    data: DataPath = None,
) -> None:
    """Writes one network to a file for other programs: small, or as ONNX, a program of torch.export or a state dict."""
    from lpk import export, sparse
    from lpk.run import Run, network

    _check_choice("method", method, (*METHODS, "ticket"))
    _check_choice("format", format, FORMATS)
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


@app.command(name="eval")
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


@app.command(name="report")
def write_report(run: RunPath, seed: RunSeed = None) -> None:
    """Writes report.html from the run's results.json."""
    from lpk.experiments import demo as one_run
    from lpk.run import PLOT, REPORT, RESULTS, check_whole
    from lpk.tickets import files

    check_whole(run)
    results = one_run.read_results(_existing(run / RESULTS))
    if seed is not None and seed != results["manifest"]["seed"]:
        raise ValueError(f"{run} is a run with seed {results['manifest']['seed']}, not {seed}")
    files.make_directory(run)
    _write_report(results, run)
    _say(f"wrote {run / REPORT} and {PLOT}")


@app.command(name="run")
def run_experiment(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An experiment, or all of the paper; see --list.")
    ] = None,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(presets.names())}; or a TOML file.")] = "demo",
    seeds: Annotated[int, typer.Option(min=1, help="How many: seeds 0, 1, 2, …")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=user_path, help="Default: lpk-experiments/PRESET. Experiments share its tickets."
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
    from lpk.run import REPORT, RESULTS

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
    for each in names:
        findings = experiments.carry_out(each, study)
        _say(each, f": {findings.summary}")
        _say(f"wrote {out / each / RESULTS}, {each}.csv and {out / REPORT}")


def _say_tickets(tickets: Tickets, run: Path) -> None:
    _say(f"{len(tickets)} tickets, densities {tickets[0].density:.1%} to {tickets[-1].density:.1%}, in {run}/tickets")


def _show(run: Run, results: dict[str, Any]) -> None:
    from lpk.run import REPORT

    _write_report(results, run.path)
    _say_results(results)
    _say(f"Open {run.path / REPORT}; the networks are in {run.path / 'pooled'}.")


def _say_results(results: dict[str, Any]) -> None:
    from lpk.reporting import report

    console.print(report.table(results))
    _say(report.summary(results))


def _say(text: str, *more: str) -> None:
    """A line that is not folded; its first part is bold where there are more."""
    console.print(terminal.bold(text, *more) if more else terminal.plain(text, keep="\n"), soft_wrap=True)


def _write_report(results: dict[str, Any], path: Path) -> None:
    from lpk.reporting import report
    from lpk.run import PLOT, REPORT
    from lpk.tickets import files

    report.write(results, path / REPORT)
    files.write_bytes(path / PLOT, report.accuracy_plot(results))


def _existing(path: Path) -> Path:
    from lpk.tickets import files

    if not files.exists(path):
        raise FileNotFoundError(f"{path} does not exist: run `lpk eval {path.parent}` first")
    return path


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _use(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    """Errors that a user can mend are one line; anything else is a bug and shows where."""
    command = typer.main.get_command(app)
    name = None
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
        _complain(f"{error.format_message()} (`lpk {f'{name} ' if name else ''}--help` says what there is)")
        sys.exit(2)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _complain(terminal.reason(error), keep="\n" if getattr(error, "many_lines", False) else "")
        sys.exit(1)
    except KeyboardInterrupt:
        kept = KEPT.get(name or "", "what was there before is kept: the same command begins again")
        terminal.console(stderr=True).print(f"interrupted; {kept}", soft_wrap=True)
        sys.exit(130)
    sys.exit(0)


def _complain(text: str, keep: str = "") -> None:
    line = Text.assemble(("lpk:", "bold red"), f" {terminal.plain(text, keep)}")
    terminal.console(stderr=True).print(line, soft_wrap=True)
