"""The progress bar: its note is read whole, whatever the terminal's width."""

import io
from contextlib import redirect_stderr

import pytest

from lpk.progress import Progress

NOTE = "target 3, candidate 1, 14 networks, 85% of the samples saved"


def shown(note: str, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    with redirect_stderr(io.StringIO()) as text, Progress("interpolation", 90) as bar:
        bar.note(note)
        bar.advance(10)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [50, 66, 80])
def test_a_note_that_has_no_room_beside_the_bar_stands_below(width, monkeypatch):
    bar, *note = shown(NOTE, width, monkeypatch)
    assert bar.startswith("interpolation") and "10/90" in bar and "left" in bar and "…" not in bar
    assert " ".join(" ".join(note).split()) == NOTE and all(len(line) <= width for line in (bar, *note))


def test_a_note_with_room_stands_beside_the_bar(monkeypatch):
    (line,) = shown(NOTE, 120, monkeypatch)
    assert line.startswith("interpolation") and line.rstrip().endswith(NOTE)
    (line,) = shown("swa 3", 80, monkeypatch)
    assert line.rstrip().endswith("swa 3")


def test_a_note_is_no_markup(monkeypatch):
    assert "[bold]x[/]" in "".join(shown("[bold]x[/]", 50, monkeypatch))
