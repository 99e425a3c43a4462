"""A study in the processes of torchrun: first the tickets that are missing are a queue, then the parts of experiments.

All processes see the study's directory. Each writes what it has finished, whole; the first one holds the locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from lpk.distributed import Ranks, are_several, together
from lpk.experiments.study import Group, Plan, Study, groups
from lpk.experiments.subject import Subject
from lpk.progress import Progress
from lpk.tickets import files

ALIKE = "all processes need the same arguments, and have to see the same directory"


class Missing(NamedTuple):
    """A part that is to be measured: of which experiment, on which tickets, and its place among theirs."""

    name: str
    directory: str
    place: int


def share_out(study: Study, plans: Mapping[str, Plan]) -> None:
    """Computes what is missing of several experiments, by name, each process a part of it; one alone does nothing here.

    Raises what Study.measure does, and lpk.distributed.RankFailed where another process raised.
    """
    if not are_several():
        return
    with together() as ranks:
        asked = {"directory": study.out, "preset": study.preset, "seeds": list(study.seeds), "experiments": [*plans]}
        ranks.check_alike({f"the study's {name}": repr(value) for name, value in asked.items()}, ALIKE)
        all_groups = {group.directory: group for plan in plans.values() for group in groups(plan)}
        ranks.by_first(lambda: _begin(study, plans))
        _train(study, ranks, all_groups)
        _measure(study, ranks, plans, all_groups)


def _begin(study: Study, plans: Mapping[str, Plan]) -> None:
    for name, plan in plans.items():
        study.begin(name, plan)


def _train(study: Study, ranks: Ranks, by_directory: Mapping[str, Group]) -> None:
    untrained = ranks.by_first(lambda: [name for name, group in by_directory.items() if not study.has_tickets(group)])
    for i in ranks.shares(len(untrained)):
        with study.subject(by_directory[untrained[i]], progress=ranks.first):
            pass
    ranks.share(None)


def _measure(study: Study, ranks: Ranks, plans: Mapping[str, Plan], by_directory: Mapping[str, Group]) -> None:
    missing = ranks.by_first(lambda: [*_missing(study, plans)])
    with ExitStack() as held, Progress("measuring", len(missing), show=study.progress and ranks.first) as bar:
        if ranks.first:
            for directory in {each.directory: None for each in missing}:
                held.enter_context(files.locked(study.tickets_path(by_directory[directory])))
        ranks.share(None)
        opened, reached = _Opened(study), 0
        held.callback(opened.close)
        for i in ranks.shares(len(missing)):
            name, directory, place = missing[i]
            bar.advance(i - reached)  # what others took
            reached = i
            plan = plans[name]
            group = next(group for group in groups(plan) if group.directory == directory)
            study.fill(name, plan, group.parts[place], opened.subject(group))
        bar.advance(len(missing) - reached)
        ranks.share(None)  # all is there, and nobody in a directory that the first is about to let go


def _missing(study: Study, plans: Mapping[str, Plan]) -> Iterator[Missing]:
    for name, plan in plans.items():
        for group in groups(plan):
            for place, finished in enumerate(study.finished(name, group)):
                if finished is None:
                    yield Missing(name, group.directory, place)


class _Opened:
    """The tickets that were measured last, which stay open."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._directory: str | None = None
        self._held = ExitStack()
        self._subject: Subject | None = None

    def subject(self, group: Group) -> Subject:
        if self._subject is None or self._directory != group.directory:
            self.close()
            self._subject = self._held.enter_context(self._study.subject(group, lock=False))
            self._directory = group.directory
        return self._subject

    def close(self) -> None:
        self._subject = None
        self._held.close()
