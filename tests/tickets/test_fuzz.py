"""Damaged files of every kind: a reader gives the right data, or one error that names the file, in bounded memory.

A thousand files in CI. LPK_FUZZ_EXAMPLES=1000000 makes so many, LPK_FUZZ_SEED=1 others; what came of them is printed
(pytest -s). What is read has to be what was written, but where a mutation is sealed anew, or the file has no checksum.
"""

from __future__ import annotations

import collections
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lpk.tickets import files
from tests.tickets.kinds import Kind, make_kinds
from tests.tickets.mutations import VALUES, ZIP, mutated, sealed_anew

EXAMPLES = int(os.environ.get("LPK_FUZZ_EXAMPLES", "1000"))
SEED = int(os.environ.get("LPK_FUZZ_SEED", "0"))
BATCH = 1000  # what Hypothesis remembers of its examples grows with their number

# The files have a few thousand bytes, or ten thousand more where the mutation adds them; compact.FREE weights, which a
# file need not pay for, take six bytes each while they are read.
MEMORY = 6 * 2**24 + 64 * 2**20

large = st.integers(0, 2**32 - 1)
mutation = st.tuples(large, large, large, st.integers(0, len(VALUES) - 1))


def says_it_is_old(content: bytes) -> bool:
    """Whether it is a JSON file without a digest that calls itself one of format 1, where there was none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == 1 and "digest" not in found


class Readers:
    """The kinds of files, and what came of the damaged ones."""

    def __init__(self, root: Path) -> None:
        self.kinds = make_kinds(root)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.contents = [kind.content for kind in self.kinds.values()]

    def check(self, name: str, changes: list[tuple[int, int, int, int]], seal: bool) -> None:
        kind = self.kinds[name]
        content = kind.content
        changes = [(kind.changes[which % len(kind.changes)], *rest) for which, *rest in changes]
        for change in changes:
            content = mutated(content, change, self.contents)
        if seal:
            content = sealed_anew(content)
        right = (
            kind.checked and not seal and not any(what in ZIP for what, *_ in changes) and not says_it_is_old(content)
        )
        kind.path.write_bytes(content)
        try:
            self.outcomes[self.outcome(kind, right or content == kind.content)] += 1
        finally:
            kind.path.write_bytes(kind.content)

    def outcome(self, kind: Kind, right: bool) -> str:
        try:
            found = kind.read(kind.path)
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (files.FileDamaged, ValueError, FileNotFoundError), repr(error)
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1500, f"not one line: {error}"
            assert kind.path.name in str(error) or str(kind.path.parent) in str(error), f"names no file: {error}"
            return type(error).__name__
        equal = kind.equal(found, kind.right)
        assert not right or equal, "other data than were written"
        return "right data" if equal else "other data, no checksum"


def peak_memory(*, anew: bool = False) -> int:
    """The most bytes in memory so far, or from now on; 0 where Linux does not say."""
    try:
        if anew:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 0


@pytest.fixture(scope="module")
def readers():
    memory = Path("/dev/shm")  # where Linux has it: a new file takes a millisecond on a disk
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Readers(Path(directory))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.*TypedStorage is deprecated")
def test_damaged_files_of_every_kind(readers):
    before = peak_memory(anew=True)

    def check(name, changes, seal):
        readers.check(name, changes, seal)
        assert peak_memory() - before < MEMORY, "it takes more memory than is stated"

    kinds, changes = st.sampled_from(list(readers.kinds)), st.lists(mutation, min_size=1, max_size=3)
    failed: list[Exception] = []
    for i in range(0, EXAMPLES, BATCH):
        batch = given(kinds, changes, st.booleans())(check)
        batch = settings(
            max_examples=min(BATCH, EXAMPLES - i),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )(batch)
        try:
            seed(SEED * 10**6 + i)(batch)()
        except Exception as error:  # the others are worth knowing, too
            failed.append(error)
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in readers.outcomes.most_common())
    print(f"\n{sum(readers.outcomes.values()):,} damaged files: {counts}; {peak_memory() - before:,} bytes more memory")
    if failed:
        raise ExceptionGroup(f"{len(failed)} batches of {BATCH}", failed)
