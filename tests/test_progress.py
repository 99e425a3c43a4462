"""The progress bar: its note is read whole, whatever the terminal's width."""

import builtins
import io
import sys
import types
import warnings
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


class ZMQInteractiveShell:
    """Jupyter's, by whose name rich knows it."""


class Handle:
    """What IPython's display returns; it keeps every state that the output had."""

    def __init__(self):
        self.states = []

    def update(self, content, *, raw):
        assert raw and list(content) == ["text/plain"]
        self.states.append(content["text/plain"])


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a notebook's cell."""
    made = []

    def display(content, *, raw, display_id):
        made.append(Handle())
        made[-1].update(content, raw=raw)
        return made[-1]

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return made


def test_a_notebook_gets_one_output_that_changes(outputs, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Progress("imp", 4000) as bar:
            for i in range(4000):
                bar.note(f"round {i}")
                bar.advance()
    (output,) = outputs
    assert "4000/4000" in output.states[-1] and "round 3999" in output.states[-1]
    assert "0/4000" in output.states[0] and 40 < len(output.states) < 200, "each call is shown"
    assert capsys.readouterr() == ("", "") and "\x1b" not in output.states[-1]
    with Progress("imp", 3) as bar:
        for _ in range(3):
            bar.advance()
        assert [f"{i}/3" in state for i, state in zip((1, 2, 3), outputs[1].states, strict=True)] == [True] * 3


def test_a_notebook_shows_nothing_where_nothing_is_to_be_shown(outputs):
    with Progress("imp", 3, show=False) as bar:
        bar.note("round 1")
        bar.advance()
    assert not outputs
