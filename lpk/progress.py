"""A progress bar with the time that is left."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from lpk.terminal import console, plain


class Progress:
    """`with Progress("imp", 40) as bar: bar.note("round 3"); bar.advance()`; on stderr; silent with show=False."""

    def __init__(self, name: str, total: int, *, show: bool = True) -> None:
        self._bars = Bars(
            TextColumn("{task.description:>13}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            # what a narrow terminal has no room for
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console(stderr=True),
            disable=not show,
            expand=True,
        )
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
