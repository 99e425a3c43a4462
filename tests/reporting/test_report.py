"""lpk.reporting.report: a run's numbers, whatever they are, in the table, the sentence, the plot and the page."""

import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lpk.reporting import numbers, report

METHODS = ("interpolation", "average", "swa", "ema")
GAINS = {"interpolation": 0.0104, "average": 0.0062, "swa": -0.0021, "ema": -0.3}
HOSTILE = "<script>alert('x')</script> & [bold]\"$\\alpha$"


def made_up(rounds: int = 4, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Results in which every ticket gains GAINS, ± 0.4 points, plus 0.1 points for each round."""
    rows = [made_up_row(round_, rounds, methods) for round_ in range(rounds)]
    means = {
        method: {
            "accuracy": sum(row["pools"][method]["accuracy"] for row in rows) / rounds,
            "gain": interval(GAINS[method] + 0.0005 * (rounds - 1), 0.002),
        }
        for method in methods
    }
    return {
        "format": 1,
        "title": "Digits, small-resnet",
        "manifest": {
            "command": "lpk demo --seed 7",
            "seed": 7,
            "versions": {"lpk": "0.1.0", "threads": 2},
            "preset": {"name": "demo", "train": {"lr": 0.05, "milestones": [2, 3]}},
        },
        "layers": {"pruned": ["conv1.weight", "layer1.0.conv1.weight"], "spared": ["fc.weight"]},
        "methods": list(methods),
        "rows": rows,
        "mean": {"ticket": sum(row["ticket"] for row in rows) / rounds, "pools": means},
        "seconds": {"imp": 61.0, "pool": 40.1, "evaluate": 5.0},
    }


def made_up_row(round_: int, rounds: int, methods: tuple[str, ...]) -> dict[str, Any]:
    ticket = 0.88 - 0.01 * round_
    steps = [
        {"candidate": i, "coefficient": 0.3, "accuracy": 0.8912, "accepted": True}
        if i % 2
        else {"candidate": i, "coefficient": None, "accuracy": None, "accepted": False}
        for i in range(rounds)
        if i != round_
    ]
    pools = {
        method: {
            "accuracy": ticket + GAINS[method] + 0.001 * round_,
            "gain": interval(GAINS[method] + 0.001 * round_, 0.004),
            "validation_accuracy": 0.9055,
            "baseline_validation_accuracy": 0.8933,
            "seconds": 4.1,
            "forward_samples": 123456,
            "steps": steps,
        }
        for method in methods
    }
    return {"round": round_, "density": 0.8**round_, "keep": 77000 - round_, "ticket": ticket, "pools": pools}


def interval(gain: float, half: float) -> dict[str, float]:
    return {"gain": gain, "low": gain - half, "high": gain + half}


def printed(results: dict[str, Any], width: int = 100, colour: bool = False) -> list[str]:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(report.Accuracies(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def page(results: dict[str, Any], directory: Path) -> str:
    report.write(results, directory / "report.html")
    return (directory / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """A page's elements, its attributes and its text, in which a space stands between elements."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(content)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_table_has_a_line_for_each_ticket_and_one_for_the_means() -> None:
    lines = printed(made_up())
    assert " ".join(lines[0].split()) == "density ticket pool (interpolation) pool (average) SWA EMA"
    numbers = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [line[:2] for line in numbers] == [
        ["100.00", "88.00"],
        ["80.00", "87.00"],
        ["64.00", "86.00"],
        ["51.20", "85.00"],
    ]
    assert " ".join(numbers[1][2:]) == "88.14 +1.14 (+0.74..+1.54) 87.72 +0.72 86.89 -0.11 57.10 -29.90"
    mean = next(line for line in lines if "mean" in line)
    assert " ".join(mean.split()) == "mean 86.50 87.69 +1.19 (+0.99..+1.39) 87.27 +0.77 86.44 -0.06 56.65 -29.85"


@pytest.mark.parametrize("width", [40, 50, 65, 80, 100])
def test_table_keeps_every_number_whole_in_a_narrow_terminal(width: int) -> None:
    lines = printed(made_up(), width)
    assert all(len(line) <= width for line in lines)
    text = " ".join(lines)
    assert "…" not in text
    for number in ("51.20", "88.14", "+1.14", "(+0.74..+1.54)", "87.72", "+0.72", "57.10", "-29.90"):
        assert number in text.split()


def test_a_narrow_terminal_has_one_line_for_each_network() -> None:
    lines = [" ".join(line.split()) for line in printed(made_up(), 66)]
    assert lines[0] == "density network accuracy"
    at = lines.index("80.00 ticket 87.00")
    assert lines[at + 1] == "pool (interpolation) 88.14 +1.14 (+0.74..+1.54)" and "mean ticket 86.50" in lines


@pytest.mark.parametrize("width", [50, 100])
def test_the_caption_is_as_wide_as_the_terminal(width: int) -> None:
    results = made_up()
    results["methods"] = []
    lines = printed(results, width)  # a table of two columns
    assert " ".join(lines).endswith(report.caption(results)) or report.caption(results) in " ".join(
        map(str.strip, lines)
    )
    assert sum("in points" in line or "test accuracy" in line or "95%" in line for line in lines) <= 2


def test_table_at_100_columns_has_one_line_for_each_ticket() -> None:
    assert len([line for line in printed(made_up(20)) if re.search(r"[+-]\d", line)]) == 20 + 1


def test_the_best_of_a_line_is_bold() -> None:
    results = made_up(2)
    results["rows"][1]["pools"] = {"swa": results["rows"][1]["pools"]["swa"]}  # worse than the ticket
    bold = [re.findall(r"\x1b\[1m([\d.]+)\x1b", line) for line in printed(results, colour=True)]
    assert [found for found in bold if found] == [["89.04"], ["87.00"], [f"{_mean(results):.2f}"]]


def _mean(results: dict[str, Any]) -> float:
    return 100 * float(results["mean"]["pools"]["interpolation"]["accuracy"])


def test_summary_of_a_gain() -> None:
    assert report.summary(made_up()) == (
        "The pool (interpolation) raises test accuracy by 1.19 points on average "
        "(95% interval +0.99 to +1.39, paired over test samples; one seed). It is better on 4 of the 4 targets "
        "(4 beyond their interval) and worse on 0; best +1.34 points at density 51.20%, "
        "worst +1.04 points at density 100.00%."
    )


def test_summary_of_a_loss() -> None:
    text = report.summary(made_up(methods=("swa",)))
    assert text.startswith(
        "SWA makes no clear difference: -0.06 points of test accuracy on average (95% interval -0.26"
    )
    counted = (
        "is better on 1 of the 4 targets (none beyond its interval) and worse on 3 (none beyond their interval); best"
    )
    assert counted in text
    text = report.summary(made_up(methods=("ema",)))
    assert text.startswith("EMA lowers test accuracy by 29.85 points on average (95% interval -30.05 to -29.65, paired")
    assert "is better on 0 of the 4 targets and worse on 4 (4 beyond their interval); best -29.70 points at" in text
    assert text.endswith("worst -30.00 points at density 100.00%.")


def test_summary_never_says_raises_or_lowers_where_the_interval_includes_zero() -> None:
    for gain in (-0.0039, 0.0, 0.0039):
        results = made_up(1)
        results["rows"][0]["pools"]["interpolation"]["gain"] = interval(gain, 0.004)
        assert "makes no clear difference" in report.summary(results)
    results["rows"][0]["pools"]["interpolation"]["gain"] = {"gain": -0.000001, "low": -0.0001, "high": 0.0001}
    assert "+0.00 points" in report.summary(results)


def test_summary_of_one_target_is_one_sentence() -> None:
    assert report.summary(made_up(1)) == (
        "The pool (interpolation) raises test accuracy by 1.04 points at density 100.00% (95% interval +0.64 to +1.44, "
        "paired over test samples; one seed)."
    )


def test_nothing_pooled(tmp_path: Path) -> None:
    results = made_up(methods=())
    assert report.summary(results) == "No ticket was pooled."
    assert any("86.50" in line for line in printed(results))
    assert "No ticket was pooled." in page(results, tmp_path)


def test_a_method_missing_in_a_row(tmp_path: Path) -> None:
    results = made_up()
    del results["rows"][1]["pools"]["interpolation"], results["rows"][2]["pools"]["average"]
    lines = [" ".join(line.split()) for line in printed(results)]
    assert "80.00 87.00 - 87.72 +0.72 86.89 -0.11 57.10 -29.90" in lines
    assert "of the 3 targets" in report.summary(results)
    text = Parsed(page(results, tmp_path)).text
    assert "1 80.00% 87.00 − 87.72 +0.72" in text
    assert text.count("of 3 accepted") == 3
    del results["mean"]["pools"]["interpolation"]
    assert report.summary(results).startswith("The pool (interpolation) is better on 3 of the 3 targets (3 beyond")
    page(results, tmp_path)


@pytest.mark.parametrize("rounds", [1, 2, 20])
@pytest.mark.parametrize("methods", [METHODS, ("interpolation",), ()])
def test_plot_is_an_svg(rounds: int, methods: tuple[str, ...]) -> None:
    image = report.accuracy_plot(made_up(rounds, methods))
    root = ElementTree.fromstring(image)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = re.findall(r"<!-- (.*?) -->", image.decode())
    assert {"ticket", *(numbers.NAMES[method] for method in methods)} <= set(texts)
    assert sum(text.endswith("%") for text in texts) >= 4  # ticks on both axes
    assert ("▾ off the scale: EMA falls to" in image.decode()) == ("ema" in methods)


def test_plot_depends_on_the_results_alone() -> None:
    import matplotlib

    expected = report.accuracy_plot(made_up())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert report.accuracy_plot(made_up()) == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_page_has_the_numbers(tmp_path: Path) -> None:
    results = made_up()
    content = page(results, tmp_path)
    text = Parsed(content).text
    assert report.summary(results).replace("-", "−") in text
    assert "1 80.00% 87.00 88.14 +1.14 (+0.74 to +1.54) 87.72 +0.72 86.89 −0.11 57.10 −29.90" in text
    assert "mean 86.50 87.69 +1.19 (+0.99 to +1.39) 87.27 +0.77" in text
    assert "<b>88.14</b>" in content and "<b>87.72</b>" not in content
    assert "round 1, 80.00% 1 of 3 accepted" in text
    assert "round 0, 100.00% 2 of 3 accepted 77,000 weights remain." in text
    assert "Validation accuracy: 89.33% before, 90.55% after." in text
    assert "1 80.00% 0.3 89.12% accepted 2 64.00% – – rejected 3 51.20% 0.3 89.12% accepted" in text
    assert "pool (interpolation) 4 12 493,824 16.4" in text
    assert "imp 61.0 s, pool 40.1 s, evaluate 5.0 s" in text
    for setting in (
        "command lpk demo --seed 7",
        "seed 7",
        "versions.threads 2",
        "preset.train.milestones [2, 3]",
    ):
        assert setting in text


def test_page_says_what_is_pruned(tmp_path: Path) -> None:
    results = made_up()
    said = "Density is that of the 2 tensors that are pruned; matrices that are not:"
    assert f"{said} fc.weight." in Parsed(page(results, tmp_path)).text
    results["layers"]["spared"] = []
    assert f"{said} none." in Parsed(page(results, tmp_path)).text
    del results["layers"]  # as in the results of an older version
    assert said not in Parsed(page(results, tmp_path)).text


def test_page_draws_a_box_for_each_candidate(tmp_path: Path) -> None:
    attributes = Parsed(page(made_up(), tmp_path)).attributes
    assert attributes.count(("class", "accepted")) == 6
    assert attributes.count(("class", "rejected")) == 6


@pytest.mark.parametrize("rounds", [1, 12])
def test_page_needs_nothing_else(tmp_path: Path, rounds: int) -> None:
    content = page(made_up(rounds), tmp_path)
    parsed = Parsed(content)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith("#")
        assert "://" not in value or name.startswith("xmlns")  # a namespace is a name; nothing is loaded
    assert "@import" not in content
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", content))


def test_everything_from_the_results_is_escaped(tmp_path: Path) -> None:
    results = made_up()
    results["title"] = HOSTILE
    results["manifest"] = {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
    results["seconds"] = {HOSTILE: 1.0}
    results["layers"]["spared"] = [HOSTILE]
    results["methods"][0] = HOSTILE
    for line in [*results["rows"], results["mean"]]:
        line["pools"][HOSTILE] = line["pools"].pop("interpolation")
    content = page(results, tmp_path)
    parsed = Parsed(content)
    assert "script" not in parsed.tags
    assert "<script" not in content
    assert parsed.text.count("<script>alert('x')</script> & [bold]") >= 6
    assert "[bold]" in " ".join(printed(results, 200))  # nor is it markup in the terminal


def test_a_command_that_is_not_utf8_is_written(tmp_path: Path) -> None:
    results = made_up()
    results["manifest"]["command"] = b"lpk demo --out \xff".decode("utf-8", errors="surrogateescape")
    assert "lpk demo --out" in page(results, tmp_path)


def test_page_replaces_the_one_before(tmp_path: Path) -> None:
    page({**made_up(), "title": "first"}, tmp_path)
    assert "<h1>second</h1>" in page({**made_up(), "title": "second"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_band_says_what_it_is() -> None:
    image = report.accuracy_plot(made_up()).decode()
    assert "band: paired over test samples, one seed; seeds vary beyond it" in image
    assert "band:" not in report.accuracy_plot(made_up(methods=())).decode()
