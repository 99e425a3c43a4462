"""What an experiment found: a sentence, records, tables and figures; written as JSON, CSV, SVG and a page."""

from __future__ import annotations

import csv
import io
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lpk import page, schema
from lpk.page import Markup, element
from lpk.schema import Row, number, string, whole
from lpk.tickets import files
from lpk.tickets.versions import versions

RESULTS = "results.json"
REPORT = "report.html"

TEXTS = [string]
CONTENT = {
    "format": whole,
    "experiment": string,
    "shows": string,
    "description": string,
    "title": string,
    "summary": string,
    "note": string,
    "tables": [{"title": string, "heads": TEXTS, "lines": [TEXTS], "best": [Row((whole, whole))]}],
    "figures": TEXTS,
    "command": string,
    "seeds": [whole],
    "seconds": number,
    "preset": schema.table,
    "versions": schema.table,
}


@dataclass(frozen=True)
class Spread:
    """Values of one quantity, one for each seed; fractions are shown in percent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """As the paper prints it: 73.32±0.22."""
        return f"{100 * self.mean:.2f}" + ("" if self.std is None else f"±{100 * self.std:.2f}")

    @property
    def points(self) -> str:
        """A difference: +1.69±0.22."""
        return page.points(self.mean) + ("" if self.std is None else f"±{100 * self.std:.2f}")

    def record(self, name: str = "accuracy") -> dict[str, Any]:
        return {name: self.mean, f"{name}_std": self.std, f"{name}_values": list(self.values)}


def spread(values: Iterable[float]) -> Spread:
    return Spread(tuple(values))


@dataclass(frozen=True)
class Table:
    """Lines of text; best: the (line, column) to stand out."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    best: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    Attributes:
        summary: in a sentence or two.
        records: every number, one dictionary a line, with its mean, standard deviation and values over the seeds.
        figures: SVG by file name, without its ending.
        note: what the reader of the tables and figures has to know.
    """

    summary: str
    records: Sequence[Mapping[str, Any]]
    tables: Sequence[Table] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    note: str = ""


def write(out: Path, name: str, findings: Findings, about: Mapping[str, Any]) -> None:
    """Writes OUT/NAME/: results.json, NAME.csv and the figures. about: what else results.json says."""
    results = {
        "format": files.FORMAT,
        "experiment": name,
        **about,
        "summary": findings.summary,
        "note": findings.note,
        "records": findings.records,
        "tables": [asdict(table) for table in findings.tables],
        "figures": list(findings.figures),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
    }
    for figure, image in findings.figures.items():
        files.write_bytes(out / name / f"{figure}.svg", image)
    files.write_bytes(out / name / f"{name}.csv", _csv(findings.records).encode())
    files.write_json(out / name / RESULTS, results)


def write_report(out: Path, names: Iterable[str]) -> None:
    """Writes OUT/report.html: the results of those of the experiments that have any, in this order."""
    found = [files.read_json(out / name / RESULTS, CONTENT) for name in names if files.exists(out / name / RESULTS)]
    sections = [section for results in found for section in _sections(out, results)]
    files.write_bytes(out / REPORT, page.document(f"Experiments: {found[0]['title']}", *sections))


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _cell(value) for key, value in record.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _sections(out: Path, results: Mapping[str, Any]) -> Iterator[Markup]:
    name = results["experiment"]
    yield element("h2", f"{name}: {results['shows']}", id=name)
    yield element("p", results["description"], class_="note")
    yield element("p", page.typeset(results["summary"]))
    for figure in results["figures"]:
        image = files.read_bytes(files.inside(out / name, f"{figure}.svg"))
        yield page.drawing(image, f"{name}: {results['description']}")
    for table in results["tables"]:
        best = {tuple(place) for place in table["best"]}
        lines = [
            [element("b", cell) if (i, j) in best else cell for j, cell in enumerate(line)]
            for i, line in enumerate(table["lines"])
        ]
        yield element("p", table["title"])
        yield page.table(table["heads"], lines)
    yield element("p", results["note"], class_="note")
    settings = {key: results[key] for key in ("command", "seeds", "seconds", "preset", "versions")}
    yield element("details", element("summary", "How to repeat it"), page.definitions(settings))
