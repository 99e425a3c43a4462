"""A progress bar with the time that is left: in a terminal, in a notebook; written once, at the end, to a file."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from lpk.terminal import console, plain


def _column() -> Column:
    return Column(no_wrap=True)


BAR = (
    TextColumn("{task.description:>13}", markup=False, table_column=_column()),
    BarColumn(bar_width=12),
    MofNCompleteColumn(),
    TimeElapsedColumn(table_column=_column()),
    TextColumn("left", table_column=_column()),
    TimeRemainingColumn(compact=True, table_column=_column()),
)
NOTE = TextColumn("{task.fields[note]}", markup=False, table_column=_column())
WIDEST = 1000  # columns, so that a measure is not cut to the terminal's
CELL = 100  # columns of a notebook's output
OFTEN = 5.0  # states a second that a notebook shows
BURST = 50  # more of them at first: after the last of a few changes there may be none for hours


class _Bars(RichProgress):
    """A bar whose note stands beside it, or below where the terminal is too narrow for both."""

    def get_renderables(self) -> Iterable[RenderableType]:
        if not self.tasks:
            return  # as it is made, and has no console yet
        self.columns = BAR
        bar = self.make_tasks_table(self.tasks)
        notes = [task.fields["note"] for task in self.tasks]
        console = self.console
        room = console.width - console.measure(bar, options=console.options.update(width=WIDEST)).maximum - 1
        if all(cell_len(note) <= room for note in notes):
            self.columns = (*BAR, NOTE)
            yield self.make_tasks_table(self.tasks)
        else:
            yield bar
            yield from map(Text, notes)


class Progress:
    """`with Progress("imp", 40) as bar: bar.note("round 3"); bar.advance()`; silent with show=False.

    It is on stderr; in a notebook it is an output of the cell.
    """

    def __init__(self, name: str, total: int, *, show: bool = True) -> None:
        stderr = console(stderr=True)
        self._cell = _Cell() if show and stderr.is_jupyter else None
        if self._cell is not None:
            self._bars = _Bars(console=self._cell.console, disable=True)  # rich would need ipywidgets, and warn
        else:
            self._bars = _Bars(console=stderr, disable=not show)
        self._task = self._bars.add_task(name, total=total, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._show(last=True)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=plain(text))
        self._show()

    def advance(self, count: int = 1) -> None:
        self._bars.advance(self._task, count)
        self._show()

    def _show(self, *, last: bool = False) -> None:
        if self._cell is not None:
            self._cell.show(self._bars.get_renderable(), last=last)


class _Cell:
    """One output of a notebook's cell, which is replaced while it is shown: a run leaves a line or two there."""

    def __init__(self) -> None:
        self.console = Console(file=io.StringIO(), width=CELL, color_system=None, force_jupyter=False)
        self._handle: Any = None
        self._left, self._seen = float(BURST), time.monotonic()

    def show(self, bars: RenderableType, *, last: bool) -> None:
        now = time.monotonic()
        self._left, self._seen = min(BURST, self._left + OFTEN * (now - self._seen)), now
        if self._left < 1 and not last:
            return
        self._left -= 1
        from IPython.display import display

        with self.console.capture() as text:
            self.console.print(bars)
        content = {"text/plain": text.get().rstrip()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
