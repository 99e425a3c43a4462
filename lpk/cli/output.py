"""What the commands print, and what they do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lpk import terminal

if TYPE_CHECKING:
    from lpk.tickets.tickets import Tickets

console = terminal.console()
console.quiet = bool(terminal.rank())  # the first of torchrun's processes speaks


def say(text: str, *more: str) -> None:
    """A line that is not folded; its first part is bold where there are more."""
    console.print(terminal.bold(text, *more) if more else terminal.plain(text, keep="\n"), soft_wrap=True)


def say_results(results: dict[str, Any]) -> None:
    from lpk.reporting import report

    for part in report.shown(results):
        console.print(part)
    for text in report.said(results):
        say(text)


def say_tickets(tickets: Tickets, run: Path) -> None:
    say(f"{len(tickets)} tickets, densities {tickets[0].density:.1%} to {tickets[-1].density:.1%}, in {run}/tickets")


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def check_alone(what: str, shared: Sequence[str]) -> None:
    """Ends the processes that torchrun started for a command of one; the first says what several can do."""
    if terminal.rank() is None:
        return
    if terminal.rank() != 0:
        raise typer.Exit(1)
    listed = ", ".join(f"`{each}`" for each in shared)
    raise ValueError(f"`{what}` is one process's work; torchrun's several share that of {listed}")


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """An interrupt inside says what `kept` returns: what is finished, and the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(Exception):  # what is damaged is said by the next command
            raise KeyboardInterrupt(kept()) from None
        raise
