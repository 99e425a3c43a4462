"""A study: experiments on one preset and some seeds, in one directory. Whatever was computed is never computed again.

seed-0/, seed-0-norewind/   run directories: the tickets, which all experiments share
seed-0-CONDITION/           tickets of another recipe or of other samples than the preset's
NAME/parts/                 one JSON file for each finished part of the experiment NAME
NAME/                       its results
report.html                 the results of all experiments
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lpk import schema
from lpk.directory import MANIFEST
from lpk.experiments.findings import REPORT, RESULTS, Findings
from lpk.experiments.subject import Subject
from lpk.presets import Preset
from lpk.progress import Progress
from lpk.run import CONTENT, Run
from lpk.schema import number
from lpk.tickets import files
from lpk.tickets.directories import check_no_links, make_inside
from lpk.tickets.store import TicketStore
from lpk.tickets.versions import versions

FORMAT = 1
PART = {"key": schema.table, "found": schema.table, "seconds": number}
PARTS = "parts"

Found = dict[str, Any]  # what was measured, in types that JSON knows; accuracies are fractions


@dataclass(frozen=True)
class Condition:
    """What tickets of their own are trained under.

    Attributes:
        name: stands in their directory's name, behind the seed.
        preset: the study's but for the recipe and the data, with as many rounds.
    """

    name: str
    preset: Preset


@dataclass(frozen=True)
class Part:
    """What is measured in one go, on the tickets of one seed.

    Attributes:
        settings: the keyword arguments of the plan's `measure`, in types that JSON knows.
        networks: how many networks are evaluated for it, at most.
        rewind: whether the tickets were rewound as the preset says, or to their initialization.
        condition: that of the tickets; None for the study's preset.
        epochs: how many are trained for it, beside the tickets'.
    """

    seed: int
    settings: Mapping[str, Any]
    networks: int
    rewind: bool = True
    condition: Condition | None = None
    epochs: int = 0


class Measured(NamedTuple):
    part: Part
    found: Found


@dataclass(frozen=True)
class Plan:
    """An experiment: measure(subject, **part.settings) is called for each part, and `show` says what came of it.

    Attributes:
        check: is given the study's `root` before anything is computed; raises where something is missing there.
    """

    parts: Sequence[Part]
    measure: Callable[..., Found]
    show: Callable[[Sequence[Measured]], Findings]
    check: Callable[[Path | None], object] = lambda root: None


class Finished(NamedTuple):
    """A part that was measured: what was found, and how long that took."""

    found: Found
    seconds: float


class Group(NamedTuple):
    """The parts of a plan that are measured on the same tickets."""

    seed: int
    rewind: bool
    condition: Condition | None
    parts: list[Part]

    @property
    def directory(self) -> str:
        """The name of the tickets' directory."""
        condition = "" if self.condition is None else f"-{self.condition.name}"
        return f"seed-{self.seed}{condition}{'' if self.rewind else '-norewind'}"


@dataclass(frozen=True)
class Study:
    """A directory of experiments.

    Attributes:
        out: the directory.
        seeds: of initialization, split and order of the samples; one set of tickets for each.
        root: where the data set lies, see lpk.data.load.
    """

    out: Path
    preset: Preset
    seeds: Sequence[int]
    root: Path | None = None
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", files.absolute(self.out))
        object.__setattr__(self, "root", None if self.root is None else files.absolute(self.root))
        if self.preset.imp.rounds < 1:
            raise ValueError(f"preset {self.preset.name} has no round of pruning; an experiment needs at least one")
        for key in ("scope", "floor", "restart"):
            if (value := self.preset.to_dict()["imp"].get(key)) is not None:
                raise ValueError(
                    f"preset {self.preset.name}: [imp] {key} is {value!r}, which the paper's experiments lack"
                )

    def measure(self, name: str, plan: Plan) -> list[Measured]:
        """Every part of the plan, in its order within each group; what is missing is computed now, tickets included.

        Raises ValueError where the directory holds tickets of another preset, DataNotFound where the data are not here.
        """
        measured = []
        self.begin(name, plan)
        for group in groups(plan):
            finished = self.finished(name, group)
            if None in finished:
                with self.subject(group) as subject:
                    self._fill(name, plan, group, subject)
                finished = self.finished(name, group)
            found = [part.found for part in finished if part is not None]
            measured += [Measured(*pair) for pair in zip(group.parts, found, strict=True)]
        return measured

    def begin(self, name: str, plan: Plan) -> None:
        """Looks whether what is missing can be computed, and makes the study's and the experiment's directories.

        Raises ValueError where files are there that are not a study's, or tickets of another preset.
        """
        if any(None in self.finished(name, group) for group in groups(plan)):
            plan.check(self.root)
        if files.exists(self.out / REPORT) and not any(files.exists(o / RESULTS) for o in self.out.iterdir()):
            raise ValueError(f"{self.out} holds {REPORT} already, and no experiment; use another directory")
        if files.exists(self.out / name / RESULTS) and not files.exists(self.out / name / PARTS):
            raise ValueError(f"{self.out / name} holds {RESULTS} already, and no experiment; use another directory")
        check_no_links([self.out / REPORT, self.out / name, self.out / name / PARTS])
        files.make_directory(self.out)
        make_inside(self.out / name)
        make_inside(self.out / name / PARTS)

    def finished(self, name: str, group: Group) -> list[Finished | None]:
        """For each part what was measured on the tickets that are there; None: it is missing."""
        if not self.has_tickets(group):
            return [None] * len(group.parts)
        identity = _identity(self.tickets_path(group))
        return [self._read(name, part, identity) for part in group.parts]

    def has_tickets(self, group: Group) -> bool:
        """Whether this group's are all trained."""
        return self.rounds(group) > self.preset.imp.rounds

    def rounds(self, group: Group) -> int:
        """How many tickets of this group are trained. Raises ValueError where they are of another preset."""
        path = self.tickets_path(group)
        if files.exists(path / MANIFEST):
            stored = files.read_json(path / MANIFEST, CONTENT)["preset"]
            if stored != self.tickets_preset(group).to_dict():
                raise ValueError(f"{path} holds tickets of another preset; use another directory")
        try:
            return len(TicketStore.open(path / "tickets").listed)
        except FileNotFoundError:
            return 0

    def tickets_path(self, group: Group) -> Path:
        return self.out / group.directory

    def tickets_preset(self, group: Group) -> Preset:
        preset = self.preset if group.condition is None else group.condition.preset
        return preset if group.rewind else replace(preset, imp=replace(preset.imp, rewind=0))

    @contextmanager
    def subject(self, group: Group, *, lock: bool = True, progress: bool = True) -> Iterator[Subject]:
        """Opens the group's tickets, which are trained where they are missing.

        lock: False where they are all trained, and somebody else holds their directory for this process.
        """
        path, preset = self.tickets_path(group), self.tickets_preset(group)
        with Run.create(path, preset, seed=group.seed, root=self.root, device=self.device, lock=lock) as run:
            tickets = run.imp(progress=self.progress and progress) if lock else run.tickets()
            yield Subject(run, tickets, _identity(path), self.root)

    def fill(self, name: str, plan: Plan, part: Part, subject: Subject) -> None:
        """Measures one part, and keeps what was found."""
        began = time.perf_counter()
        found = plan.measure(subject, **part.settings)
        self._write(name, part, subject.identity, found, time.perf_counter() - began)

    def _fill(self, name: str, plan: Plan, group: Group, subject: Subject) -> None:
        with Progress(f"{name} {group.directory.removeprefix('seed-')}", len(group.parts), show=self.progress) as bar:
            for part, finished in zip(group.parts, self.finished(name, group), strict=True):
                if finished is None:
                    bar.note(_words(part.settings))
                    self.fill(name, plan, part, subject)
                bar.advance()

    def _read(self, name: str, part: Part, identity: str) -> Finished | None:
        key = self._key(name, part, identity)
        path = self._path(name, part, key)
        if not files.exists(path):
            return None
        try:
            content = files.read_json(path, PART)
        except files.FileDamaged as error:
            raise files.FileDamaged(f"{error}; delete it") from error
        if content["key"] != key:
            raise files.FileDamaged(f"{path} is not the part that its name says; delete it")
        return Finished(content["found"], content["seconds"])

    def _write(self, name: str, part: Part, identity: str, found: Found, seconds: float) -> None:
        key = self._key(name, part, identity)
        content = {"format": files.FORMAT, "key": key, "found": found, "seconds": round(seconds, 3)}
        content["versions"] = versions()
        files.write_json(self._path(name, part, key), content)

    def _key(self, name: str, part: Part, identity: str) -> dict[str, Any]:
        """All that determines what is found, as JSON gives it back."""
        key = {
            "format": FORMAT,
            "experiment": name,
            "preset": (self.preset if part.condition is None else part.condition.preset).to_dict(),
            "seed": part.seed,
            "rewind": part.rewind,
            "tickets": identity,
            "settings": dict(part.settings),
        }
        return dict(json.loads(json.dumps(key)))

    def _path(self, name: str, part: Part, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / name / PARTS / f"seed-{part.seed}-{digest}.json"


def groups(plan: Plan) -> list[Group]:
    """The plan's parts by the directory of their tickets, in the order in which they come first."""
    found: dict[str, Group] = {}
    for part in plan.parts:
        group = Group(part.seed, part.rewind, part.condition, [])
        found.setdefault(group.directory, group).parts.append(part)
    return list(found.values())


def rewinds(preset: Preset) -> tuple[bool, ...]:
    """With rewinding and without; where the preset itself rewinds to initialization, that alone."""
    return (True, False) if preset.imp.rewind else (True,)


def _identity(path: Path) -> str:
    """Of the tickets in a run directory: a digest of their digests."""
    digests = "".join(ticket["digest"] for ticket in TicketStore.open(path / "tickets").listed)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
