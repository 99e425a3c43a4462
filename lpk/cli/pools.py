"""What is made of tickets: `lpk pool`, `lpk eval`, `lpk report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpk import terminal
from lpk.choices import SCOPES
from lpk.cli.output import check_alone, keeping, say, say_results, use_threads
from lpk.options import Device, ModelFunction, NoLatency, Quiet, RunSeed, SubjectData, SubjectPath, Threads, named
from lpk.pooling.methods import CRITERIA, METHODS, PRUNE, SEARCHES


def pool(
    run: SubjectPath,
    target: Annotated[
        int | None, typer.Option(metavar="N", help="The round of the ticket to improve; default: every one.")
    ] = None,
    method: Annotated[str, named(f"One of {', '.join(METHODS)}.", *METHODS)] = "interpolation",
    prune: Annotated[str, named(f"One of {', '.join(PRUNE)}.", *PRUNE)] = "during",
    candidates: Annotated[
        int | None, typer.Option(metavar="N", help="How many of the nearest tickets; default: all.")
    ] = None,
    criterion: Annotated[str, named(f"What picks: {' or '.join(CRITERIA)}.", *CRITERIA)] = "accuracy",
    scope: Annotated[
        str | None, named(f"What survives: {' or '.join(SCOPES)}; default: as tickets were pruned.", *SCOPES)
    ] = None,
    search: Annotated[str, named(f"One of {', '.join(SEARCHES)}.", *SEARCHES)] = "bounded",
    model: ModelFunction = None,
    data: SubjectData = None,
    seed: RunSeed = None,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Pools tickets (Algorithms 2 and 3, or the SWA and EMA baselines).

    Started by torchrun, its processes share the targets: see docs/distributed.md.
    """
    from lpk import own
    from lpk.distributed import launched
    from lpk.experiments import demo as one_run

    if target is not None:
        check_alone("lpk pool --target", ["lpk pool"])
    use_threads(threads)
    kept = f"finished networks are kept, and what was there before; `{terminal.command()}` begins this search again"
    with (
        keeping(lambda: kept),
        launched(device),
        own.opened(run, model=model, data=data, seed=seed, device=device) as opened,
    ):
        options: dict[str, Any] = {
            "prune": prune,
            "candidates": candidates,
            "criterion": criterion,
            "search": search,
            "scope": scope,
        }
        tickets = opened.tickets()
        for pooled in one_run.make_pools(opened, tickets, method=method, target=target, progress=not quiet, **options):
            say(str(pooled))
    say("Validation scores pick and flatter; `lpk eval` reports the test samples.")


def evaluate(
    run: SubjectPath,
    model: ModelFunction = None,
    data: SubjectData = None,
    seed: RunSeed = None,
    threads: Threads = None,
    device: Device = None,
    no_latency: NoLatency = False,
    quiet: Quiet = False,
) -> None:
    """Test scores and costs of tickets and pooled networks, and which one to ship."""
    from lpk import own
    from lpk.experiments import demo as one_run

    use_threads(threads)
    with own.opened(run, model=model, data=data, seed=seed, device=device) as opened:
        results = one_run.evaluate(opened, latency=not no_latency, progress=not quiet)
        say_results(results)


def write_report(run: SubjectPath, seed: RunSeed = None) -> None:
    """Writes report.html from results.json."""
    from lpk.directory import check_whole
    from lpk.reporting import plots
    from lpk.reporting.results import PLOT, REPORT, RESULTS, Results, write
    from lpk.tickets import files

    plots.need()
    check_whole(run)
    results = Results.read(existing(run / RESULTS))
    if seed is not None and seed != results["manifest"].get("seed"):
        raise ValueError(f"{run} is a run with seed {results['manifest'].get('seed')}, not {seed}")
    files.make_directory(run)
    write(results, run)
    say(f"wrote {run / REPORT} and {PLOT}")


def existing(path: Path) -> Path:
    from lpk.directory import MANIFEST
    from lpk.tickets import files

    if not files.exists(path):
        functions = "" if files.exists(path.with_name(MANIFEST)) else " --model module:function --data module:function"
        raise FileNotFoundError(f"{path} does not exist: run `lpk eval {path.parent}{functions}` first")
    return path
