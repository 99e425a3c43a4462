"""The file that bench.search, bench.train and bench.loader keep their results in, written after every row."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.results import Row
from lpk.tickets import files


class ResultsFile:
    """Rows by part. Those of an earlier run of the same preset stay until they are measured again.

    Args:
        path: of the JSON file; None: nothing is written.
        head: what the file says beside its rows; earlier rows count where its "preset" and "benchmark" are the same.
        parts: what is measured, a list of rows each.
    """

    def __init__(self, path: Path | None, head: Row, parts: Sequence[str]) -> None:
        self.path = path
        if path:
            files.make_directory(path.parent)
        self.result = {part: [] for part in parts} | self._earlier(head) | head

    def _earlier(self, head: Row) -> Row:
        if self.path and self.path.is_file():
            found: Row = files.read_json(self.path)
            if all(found.get(key) == head.get(key) for key in ("preset", "benchmark")):
                return found
        return {}

    def keep(self, part: str, measured: Row) -> None:
        """Puts what was measured in the place of what it measures again."""
        measured["date"] = datetime.date.today().isoformat()
        rows = {identity(row): row for row in self.result[part]} | {identity(measured): measured}
        self.result[part] = [rows[key] for key in sorted(rows)]
        if self.path:
            files.write_bytes(self.path, (json.dumps(self.result, indent=1) + "\n").encode())


def identity(row: dict[str, Any]) -> tuple[int, int, int, str, str]:
    """Of which seed, target, number of cores, dtype and contestant a row is, as far as it is of one."""
    return row["seed"], row.get("target", 0), row.get("cores", 0), row.get("dtype", ""), row.get("contestant", "")
