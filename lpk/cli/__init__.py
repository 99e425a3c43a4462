"""The `lpk` command: the demo, its steps one by one on a directory of tickets, and the paper's experiments.

training     demo, imp, import: what makes tickets
pools        pool, eval, report: what is made of them
networks     export, info: one network, or any other file
experiments  run: the paper's figures and tables
output       lines and tables; what an interrupt says
main         the process: errors are one line

A command imports what it needs when it runs: PyTorch takes seconds, and --help needs none of it.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from lpk import version
from lpk.cli import experiments, networks, pools, training
from lpk.cli.output import check_alone, say
from lpk.options import Command, Group

SHARED = ("imp", "pool", "run")  # what the processes of torchrun do together

app = typer.Typer(
    cls=Group,
    help="Lottery Pools: the tickets of iterative magnitude pruning, interpolated into stronger ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    if wanted:
        say(f"lpk {version.OWN}, torch {installed_version('torch')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="The versions of lpk and PyTorch.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in SHARED:
        check_alone(f"lpk {context.invoked_subcommand}", [f"lpk {name}" for name in SHARED])


def backends() -> None:
    """Says which kernels are compiled in, and which of them run here."""
    from lpk import ops

    for backend, state in ops.backends().items():
        say(f"{backend}: {state}")


# in the order of --help
app.command("backends", cls=Command)(backends)
app.command("demo", cls=Command)(training.demo)
app.command("imp", cls=Command)(training.imp)
app.command("import", cls=Command)(training.import_)
app.command("pool", cls=Command)(pools.pool)
app.command("export", cls=Command)(networks.export_network)
app.command("info", cls=Command)(networks.info)
app.command("eval", cls=Command)(pools.evaluate)
app.command("report", cls=Command)(pools.write_report)
app.command("run", cls=Command)(experiments.run)
