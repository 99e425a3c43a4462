"""lpk.reporting.cost_tables: costs in the terminal and on the page, in tables and pictures."""

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lpk.reporting import plots, report
from lpk.reporting.results import Results
from lpk.tickets import files
from tests.reporting.test_report import Parsed, made_up, page


def with_costs(results: dict[str, Any], latency: bool = True) -> dict[str, Any]:
    """Halves of a dense network that takes 1,000 KiB, 4 M multiply-adds, 2 ms for a sample and 8 ms for 16."""
    for i, row in enumerate(results["rows"]):
        share = 0.5**i
        row["costs"] = {
            "layers": {"conv1.weight": share, "layer1.0.conv1.weight": 0.9 * share},
            "bytes": int(share * 1_024_000),
            "products": int(share * 4_000_000),
        }
        if latency:
            row["costs"]["latency"] = {
                "one": {"pytorch": 0.002, "sparse": 0.001 * share},
                "batch": {"pytorch": 0.008, "sparse": 0.004 * share},
            }
        for pool in row["pools"].values():
            pool["costs"] = {"layers": {"conv1.weight": share, "layer1.0.conv1.weight": 0.88 * share}}
    results["costs"] = {"bytes": 1_024_000, "products": 4_000_000}
    if latency:
        machine = {"processor": "A <b>", "instruction_set": "avx2", "threads": 2, "date": "2026-01-02"}
        results["costs"]["latency"] = {"batch": 16, **machine}
    return results


@pytest.mark.parametrize("width", [50, 100])
def test_costs_in_a_terminal(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), markup=False)
    console.print(*report.shown(with_costs(made_up())), sep="\n")
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    at = lines.index("density KiB M mult-adds ms ms for 16")
    assert lines[at + 2 : at + 5] == [
        "dense 1,000 4.00 2.00 8.00",
        "100.00 1,000 4.00 1.00 4.00",
        "80.00 500 2.00 0.500 2.00",
    ]
    assert "medians on A <b>, avx2, 2 threads, 2026-01-02." in " ".join(lines)


def test_costs_on_the_page(tmp_path: Path) -> None:
    content = page(with_costs(made_up()), tmp_path)
    text = Parsed(content).text
    assert "density file, KiB multiply-adds, millions one sample, ms 16 samples, ms dense 1,000 4.00 2.00 8.00" in text
    assert "64.00% 250 25% 1.00 25% 0.250 ×8.0 1.00 ×8.0" in text
    assert "Density of the 2 pruned tensors" in text and "tensor 100 80 64 51.2 conv1.weight 100 50 25 12.5" in text
    assert "layer1.0.conv1.weight 90 45 22.5 11.2" in text and "differs by at most 2.0% of its weights" in text
    labels = re.findall(r'aria-label="(.*?)"', content)
    assert labels == ["Test accuracy against density", "Test accuracy against latency", "Test accuracy against bytes"]
    assert "<b>, avx2" not in content


def test_costs_without_latency_or_of_an_older_version(tmp_path: Path) -> None:
    results = with_costs(made_up(), latency=False)
    results["costs"]["problem"] = "lpk.sparsify does not take the network: x < y."
    content = page(results, tmp_path)
    assert (
        content.count("aria-label") == 2
        and "ms" not in Parsed(content).text.split("Steps:")[0].split("Cost of")[1].split()
    )
    assert (
        "A pool costs what its ticket does. lpk.sparsify does not take the network: x < y. Small"
        in Parsed(content).text
    )
    assert "Cost of a network" not in page(made_up(), tmp_path) and len(list(report.shown(made_up()))) == 1


def test_recommendation_is_on_the_page_and_in_the_pictures(tmp_path: Path) -> None:
    results = with_costs(made_up())
    content = page(results, tmp_path)
    recommended = next(text for text in report.said(results) if text.startswith("Recommended: "))
    assert recommended.replace("-", "−") in Parsed(content).text
    assert content.count("<!-- recommended -->") == 2
    assert "<!-- recommended -->" not in page(with_costs(made_up(methods=())), tmp_path)


def test_front() -> None:
    assert plots.front([(2, 5), (1, 3), (3, 5), (2, 4), (4, 6), (1, 2)]) == [(1, 3), (2, 5), (4, 6)]
    assert plots.front([(1, 1), (1, 1)]) == [(1, 1)]


def test_costs_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    results = json.loads(json.dumps(with_costs(made_up())))
    files.write_json(tmp_path / "results.json", results)
    assert Results.read(tmp_path / "results.json") == results
    for place, key in (([], "layers"), ([], "bytes"), ([], "products"), ([], "latency"), (["layers"], "conv1.weight")):
        damaged = copy.deepcopy(results)
        costs = damaged["rows"][2]["costs"]
        for name in place:
            costs = costs[name]
        del costs[key]
        files.write_json(tmp_path / "results.json", damaged)
        with pytest.raises(files.FileDamaged, match="is damaged: "):
            Results.read(tmp_path / "results.json")
