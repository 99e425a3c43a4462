"""A progress bar with the time that is left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """`with Progress("imp", 40) as bar: bar.note("round 3"); bar.advance()`; on stderr; silent with show=False."""

    def __init__(self, name: str, total: int, *, show: bool = True) -> None:
        self._bars = Bars(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not show,
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
        self._bars.update(self._task, note=text)

    def advance(self, count: int = 1) -> None:
        self._bars.advance(self._task, count)
