"""A progress bar with the time that is left."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from rich.cells import cell_len
from rich.console import RenderableType
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
    """`with Progress("imp", 40) as bar: bar.note("round 3"); bar.advance()`; on stderr; silent with show=False."""

    def __init__(self, name: str, total: int, *, show: bool = True) -> None:
        self._bars = _Bars(console=console(stderr=True), disable=not show)
        self._task = self._bars.add_task(name, total=total, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=plain(text))

    def advance(self, count: int = 1) -> None:
        self._bars.advance(self._task, count)
