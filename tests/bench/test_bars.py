"""The table of what is asked of the kernels. Nothing is timed here."""

from pathlib import Path

import pytest

from bench import bars, results
from bench.cases import COMPARABLE, LARGE
from lpk.tickets import files
from tests.bench.command import MACHINE, command

ROOT = Path(__file__).parents[2]


def row(operation, peer, milliseconds, n=LARGE, coefficients=1, device="cuda", to_floor=None):
    usual = {"dtype": "float32", "density": 0.2, "distribution": "normal"}
    own = {"operation": operation, "peer": peer, "milliseconds": milliseconds, "to_floor": to_floor}
    return usual | own | {"n": n, "coefficients": coefficients, "device": device}


def lines_of(*rows):
    """The table's cells by what is asked."""
    text = bars.table({"machine": MACHINE | {"gpu": "Imagined"}, "date": "2026-01-02", "rows": list(rows)})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {what: tuple(others) for what, *others in cells[2:]}, text


def test_what_was_not_measured_is_said_so():
    lines, text = lines_of(row("interpolate_prune", "lpk", 0.1, device="cpu"))
    assert all(measured == "not measured" and not met for _, measured, met in lines.values())
    assert f"0 of {len(lines)} met" in text and "Imagined" in text


@pytest.mark.parametrize(("milliseconds", "told"), [(0.53, ("0.530", "yes")), (0.5301, ("0.530", "no"))])
def test_a_bar_is_met_up_to_its_limit(milliseconds, told):
    lines, text = lines_of(
        row("interpolate_prune", "lpk", milliseconds),
        row("interpolate_prune", "lpk", 9.0, n=2**24),
        row("interpolate_prune", "torch.topk", 9.0),
    )
    assert lines["interpolate_prune, one coefficient, 2^26"] == ("0.53 ms", *told)
    assert ("1 of" in text) == (told[1] == "yes")


def test_units_and_ratios():
    """Eleven thresholds are one call, a call's time is in microseconds, and a ratio is of the same question."""
    lines, _ = lines_of(
        row("interpolate_threshold", "lpk", 0.02, coefficients=11),
        row("interpolate_threshold", "lpk.triton", 0.03, coefficients=11),
        row("interpolate_prune", "lpk", 0.2, coefficients=11, to_floor=1.4),
        row("host, magnitude_mask", "lpk", 0.0123, n=2**10),
        row("call, interpolate", "lpk", 0.03, n=2**20),
        row("call, interpolate", "torch.lerp", 0.01, n=2**20),
        row("call, magnitude_mask", "lpk", 0.03, n=2**20),
        row("call, magnitude_mask", "torch.topk", 0.06, n=2**20),
    )
    measured = {what: cells for what, cells in lines.items() if cells[1] != "not measured"}
    assert measured == {
        "interpolate_threshold, eleven coefficients, all of them, 2^26": ("0.55 ms", "0.220", "yes"),
        "interpolate_prune_all, eleven coefficients, 2^26, over a copy's floor": ("1.5", "1.40", "yes"),
        "magnitude_mask, until a call returns, 2^10": ("15 µs", "12.3", "yes"),
        "interpolate, one coefficient, 2^20, over torch.lerp": ("2", "3.00", "no"),
        "magnitude_mask, one coefficient, 2^20, over torch.topk": ("2", "0.500", "yes"),
        "interpolate_threshold, eleven coefficients, 2^26, Triton over CUDA": ("1.3", "1.50", "no"),
    }


def test_every_function_has_its_bars():
    lines, _ = lines_of()
    for function in COMPARABLE:
        assert sum(what.startswith(f"{function}, ") and what.endswith(("returns, 2^10",)) for what in lines) == 1
        assert sum(what.startswith(f"{function}, ") and "2^20, over torch" in what for what in lines) == 1


def test_the_file_is_this_machines_unless_one_is_named(tmp_path, monkeypatch, capsys):
    committed = ROOT / "bench" / "results" / "nvidia-h100-80gb-hbm3.json"
    command(bars, monkeypatch, committed)
    printed = capsys.readouterr().out
    date = files.read_json(committed)["date"]
    assert "| interpolate_prune, one coefficient, 2^26 | 0.53 ms |" in printed and date in printed
    monkeypatch.setattr(bars, "machine", lambda: MACHINE)
    monkeypatch.setattr(bars, "HERE", tmp_path)
    monkeypatch.setattr(results, "machine", lambda: MACHINE)
    results.write(tmp_path / "results", [row("interpolate_prune", "lpk", 0.4321)])
    command(bars, monkeypatch)
    assert "| 0.53 ms | 0.432 | yes |" in capsys.readouterr().out
