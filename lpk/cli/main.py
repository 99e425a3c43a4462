"""The process of a command: its exit status, and errors on one line."""

from __future__ import annotations

import os
import sys

import typer
from rich.text import Text

from lpk import terminal
from lpk.cli import app

# typer brings a click of its own, or takes the one that is installed
UsageError: type[typer.BadParameter] = typer.BadParameter.mro()[1]


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
        if not terminal.rank():  # all of torchrun's processes were asked the same
            _complain(f"{_message(error)} (`lpk {f'{name} ' if name else ''}--help` says what there is)")
        sys.exit(2)
    except BrokenPipeError:  # who read the output has seen enough, as `head` has; an older rich leaves that to us
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if getattr(error, "said_elsewhere", False):
            sys.exit(1)
        _complain(terminal.reason(error), keep="\n" if getattr(error, "many_lines", False) else "")
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or f"what was there before is kept; `{terminal.command()}` begins again"
        if not terminal.rank():
            terminal.console(stderr=True).print(terminal.plain(f"interrupted; {kept}"), soft_wrap=True)
        sys.exit(130)
    sys.exit(0)


def _message(error: typer.BadParameter) -> str:
    """What is wrong with the arguments; an option that was meant is suggested as any other name is."""
    if close := getattr(error, "possibilities", None):
        return f"{error.message}. Did you mean {' or '.join(map(repr, close))}?"
    return error.format_message()


def _complain(text: str, keep: str = "") -> None:
    own = "" if terminal.rank() is None else f" rank {terminal.rank()}:"
    line = Text.assemble(("lpk:", "bold red"), f"{own} {terminal.plain(text, keep)}")
    terminal.console(stderr=True).print(line, soft_wrap=True)
