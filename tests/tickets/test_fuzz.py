"""Damaged files of every kind: a reader gives the right data, or one error that names the file, in bounded memory.

A thousand files in CI. LPK_FUZZ_EXAMPLES=1000000 makes so many, LPK_FUZZ_SEED=1 others; what came of them is printed
(pytest -s). What is read has to be what was written, but where a mutation is sealed anew, or the file has no checksum.
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lpk import presets
from lpk.experiments import demo, findings
from lpk.networks.flat import Layout
from lpk.pruning.imp import _Run
from lpk.reporting import report
from lpk.run import CONTENT, MANIFEST
from lpk.sparse import load_sparse, save_sparse
from lpk.tickets import files, nested, state_dicts, tensors
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.store import TicketStore
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests.conftest import TINY_PRESET

EXAMPLES = int(os.environ.get("LPK_FUZZ_EXAMPLES", "1000"))
SEED = int(os.environ.get("LPK_FUZZ_SEED", "0"))
BATCH = 1000  # what Hypothesis remembers of its examples grows with their number
FORMAT1 = Path(__file__).parent / "format1"

# The files have a few thousand bytes, or ten thousand more where the mutation adds them; compact.FREE weights, which a
# file need not pay for, take six bytes each while they are read.
MEMORY = 6 * 2**24 + 64 * 2**20


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        path: one that is intact.
        read: what a reader makes of it; right: what that has to be.
        checked: whether a checksum covers what is read.
        equal: whether what was read is what it has to be.
        changes: the mutations that make sense.
    """

    path: Path
    read: Callable[[Path], Any]
    checked: bool = True
    equal: Callable[[Any, Any], bool] = lambda found, right: same(found, right)

    def __post_init__(self) -> None:
        self.content = self.path.read_bytes()
        structure = ("line",) if self.path.suffix == ".toml" else ZIP if self.content[:2] == b"PK" else TREE * 2
        self.changes = BYTES + (() if self.path.name == "old.pt" else structure)
        self.right = self.read(self.path)


# --- files of every kind ----------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Its names are in another order than the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(4, 5)
        self.b = nn.BatchNorm1d(5)
        self.a = nn.Linear(5, 4, bias=False)
        self.c = nn.Linear(4, 2)


def state_of_round(round_: int) -> dict[str, Tensor]:
    """What tests/tickets/format1 holds, too."""
    state = Network().state_dict()
    return {
        name: (torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape) + 1 + i + round_) / 8
        if tensor.is_floating_point()
        else torch.tensor(7)
        for i, (name, tensor) in enumerate(state.items())
    }


def tickets_of_format1() -> Tickets:
    layout = Layout.of(Network().state_dict(), ["w.weight", "a.weight"])
    mask, made = torch.ones(layout.n, dtype=torch.bool), []
    for i in range(3):
        mask = mask.clone()
        if i:
            mask[:: 5 - i] = False
        made.append(Ticket.of(i, layout, state_of_round(i), mask))
    return Tickets(made)


def make_kinds(root: Path) -> dict[str, Kind]:
    """Writes a file of each kind, and copies those of format 1."""
    made = tickets_of_format1()
    files.make_directory(root / "tickets")
    files.make_directory(root / "dense")
    store = TicketStore(root / "tickets", made.layout)
    for each in made:
        store.append(each)
    store.commit({"epochs": 3, "rounds": 2, "fraction": 0.2, "rewind": 1, "seed": 0})
    for path in FORMAT1.rglob("*.*"):
        files.make_directory((root / "format1" / path.relative_to(FORMAT1)).parent)
        (root / "format1" / path.relative_to(FORMAT1)).write_bytes(path.read_bytes())
    ticket, old = made[2], root / "format1"
    tree = {"optimizer": {0: (torch.ones(3), 0.5, None)}, "best": float("inf"), "names": ["a", "b"]}
    own: dict[str, Tensor] = {}
    state = {f"model.{name}": tensor for name, tensor in state_of_round(9).items()}
    metadata = {"round": 2, "epoch": 2, "train": nested.taken_apart(tree, own, "train")}
    files.save_tensors(root / "checkpoint", state | {f"train.{k}": v for k, v in own.items()}, metadata)
    steps = Step(1, 0.5, 0.5, True), Step(0, None, None, False)
    numbers = (0.5, 0.25, steps, 300, 100, 1.5, {"method": "interpolation"})
    Pooled(2, made.layout, ticket.flat, ticket.mask, *numbers).save(root / "pooled")
    save_sparse(root / "sparse", ticket.state_dict, ticket.masks)
    for name in (MANIFEST, "results.json"):
        files.write_json(root / name, files.read_json(old / "run" / name) | {"format": 2})
    table = findings.Table("t", ["a", "b"], [["1", "2"]], [(0, 1)])
    texts = {"shows": "s", "description": "d", "title": "t", "preset": {}, "seeds": [0], "seconds": 1.5}
    findings.write(root, "dense", findings.Findings("sum", [{"x": 1.5}], [table]), texts)
    (root / "preset.toml").write_text(TINY_PRESET)
    content = {"epoch": 3, "net": ticket.state_dict, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}
    torch.save(content, root / "new.pt")
    torch.save(content, root / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(ticket.state_dict, root / "plain.safetensors")
    first = next((root / "tickets").glob("round-01*"))
    old_first = next((old / "run" / "tickets").glob("round-01*"))
    return {
        "tickets.json": Kind(root / "tickets" / "tickets.json", all_beside),
        "ticket": Kind(first, all_beside),
        "tickets.json 1": Kind(old / "run" / "tickets" / "tickets.json", all_beside, equal=begins),
        "ticket 1": Kind(old_first, all_beside),
        "checkpoint": Kind(root / "checkpoint", lambda path: loaded(path, made.layout)),
        "pooled": Kind(root / "pooled", lambda path: vars(Pooled.load(path))),
        "pooled 1": Kind(old / "run" / "pooled" / "interpolation" / "round-02.safetensors", read_pooled, False),
        "sparse": Kind(root / "sparse", load_sparse),
        "sparse 1": Kind(old / "sparse.safetensors", load_sparse, False),
        "manifest": Kind(root / MANIFEST, read_manifest),
        "results": Kind(root / "results.json", lambda path: (found := demo.read_results(path), report.summary(found))),
        "findings": Kind(root / "dense" / "results.json", lambda path: files.read_json(path, findings.CONTENT)),
        "preset": Kind(root / "preset.toml", presets.load, False),
        "pt": Kind(root / "new.pt", state_dicts.load),
        "pt, no zip": Kind(root / "old.pt", state_dicts.load, False),
        "safetensors": Kind(root / "plain.safetensors", state_dicts.load, False),
    }


def all_of(directory: Path) -> Any:
    return [(ticket.state_dict, ticket.masks) for ticket in Tickets.load(directory)]


def all_beside(path: Path) -> Any:
    return all_of(path.parent)


def begins(found: Any, right: Any) -> bool:
    """Nothing tells of the last tickets that are missing in a list of format 1."""
    return same(found, right[: len(found)])


def read_pooled(path: Path) -> Any:
    pooled = Pooled.load(path)
    return pooled.state_dict, pooled.masks


def loaded(path: Path, layout: Layout) -> Any:
    whole = {"round": files.schema.whole, "epoch": files.schema.whole, "train": files.schema.anything}
    return _Run(Network(), lambda *_: None, layout, {})._load(path, whole)


def read_manifest(path: Path) -> Any:
    manifest = files.read_json(path, CONTENT)
    return manifest, presets.from_dict(manifest["preset"], str(path))


def same(a: Any, b: Any) -> bool:
    """Bit for bit; the order of dicts does not matter."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if {type(a), type(b)} <= {int, float}:  # the digest of a JSON file does not tell 1.0 from 1, but -0.0 from 0
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return type(a) is type(b) and a == b


def says_it_is_old(content: bytes) -> bool:
    """Whether it is a JSON file without a digest that calls itself one of format 1, where there was none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == 1 and "digest" not in found


# --- mutations --------------------------------------------------------------------------------------------------------

# As text, since Python would refuse to write some of them.
VALUES = [
    *("null", "true", "false", "0", "1", "-1", "2", "255", "1e999", "-0.0", "1.0", "0.5", "NaN", "-Infinity", '""'),
    *("[]", "{}", "[[]]", '"float32"', '"float64"', '"F16"', '"I64"', '"BOOL"', '"w.weight"', '"lpk.mask"', "[4,5]"),
    *(
        str(2**31),
        str(2**40),
        str(2**63),
        str(-(2**63)),
        str(2**64),
        "1" * 5000,
        '"\\ud800"',
        '"a\\nb\\u0000"',
        '"../x"',
    ),
    *("[" * 5000, '{"a":' * 5000, "[" * 900 + "]" * 900, "[1099511627776]", '["float32",1099511627776,1099511627776]'),
    *('[["x","float32",[1099511627776]]]', '{"tensor":"0"}', '{"dict":[[[],1]]}', '"' + "x" * 5000 + '"'),
]
BYTES = ("flip", "flip", "flip", "truncate", "extend", "splice", "overwrite", "empty", "digit")
TREE = ("replace", "replace", "delete", "rename", "swap", "copy", "twice", "sorted")
ZIP = ("deflate", "drop member", "double member", "rename member", "flip in member", "swap members")
Mutation = tuple[str, int, int, int]

large = st.integers(0, 2**32 - 1)
mutation = st.tuples(large, large, large, st.integers(0, len(VALUES) - 1))


def mutated(content: bytes, change: Mutation, others: list[bytes]) -> bytes:
    what, a, b, value = change
    if what in TREE:
        return in_json(content, change)
    if what in ZIP:
        return in_zip(content, change)
    if not content:
        return content
    at = a % len(content)
    match what:
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << b % 8]) + content[at + 1 :]
        case "truncate":
            return content[:at]
        case "extend":
            return content + VALUES[value].encode()
        case "splice":
            other = others[a % len(others)]
            return content[: b % len(content)] + other[b % (len(other) + 1) :]
        case "overwrite":
            number = (0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content), b)[value % 8]
            at = 0 if b % 3 == 0 else at  # the length of a header
            return content[:at] + struct.pack("<Q", number) + content[at + 8 :]
        case "line":  # of TOML, whose values are nearly JSON's
            lines = content.split(b"\n")
            lines[a % len(lines)] = lines[a % len(lines)].partition(b"=")[0] + b"= " + VALUES[value].encode()
            return b"\n".join(lines)
        case "digit":
            digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
            at = digits[a % len(digits)] if digits else at
            return content[:at] + bytes([48 + b % 10]) + content[at + 1 :]
    return b""


def in_json(content: bytes, change: Mutation) -> bytes:
    """The mutation of a JSON file, of a safetensors header, or of the metadata in it; the rest fits again."""
    try:
        if content[:1] == b"{":
            return in_tree(json.loads(content), change).encode()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        if change[1] % 2 and "lpk" in header.get("__metadata__", {}):
            header["__metadata__"]["lpk"] = in_tree(json.loads(header["__metadata__"]["lpk"]), change)
            text = json.dumps(header).encode()
        else:
            text = in_tree(header, change).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    except (ValueError, AttributeError, TypeError, RecursionError, struct.error):  # an earlier mutation broke it
        return content


def in_tree(tree: Any, change: Mutation) -> str:
    """The JSON text of a tree with one of its nodes changed."""
    what, a, b, value = change
    places = places_of(tree)
    if what == "sorted" or not places:
        return json.dumps(tree, sort_keys=True, indent=b % 3)
    parent, key = places[a // 2 % len(places)]
    other, other_key = places[b % len(places)]
    mark = "@the value@"
    match what:
        case "replace":
            parent[key] = mark
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[str(other_key)[: b % 40]] = parent.pop(key)
        case "swap":
            parent[key], other[other_key] = other[other_key], parent[key]
        case "copy":
            parent[key] = json.loads(json.dumps(other[other_key]))
        case "twice" if isinstance(tree, dict) and tree:
            name = list(tree)[a % len(tree)]
            return "{" + f"{json.dumps(name)}:{VALUES[value]}," + json.dumps(tree)[1:]
    return json.dumps(tree).replace(f'"{mark}"', VALUES[value])


def places_of(tree: Any) -> list[tuple[Any, Any]]:
    """Every node but the root: what it stands in, and under which key or number."""
    places, open_ = [], [tree]
    while open_:
        parent = open_.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ()
        places += [(parent, key) for key in keys]
        open_ += [parent[key] for key in keys]
    return places


def in_zip(content: bytes, change: Mutation) -> bytes:
    """The mutation of a zip archive, with right checksums."""
    what, a, b, _ = change
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    except Exception:  # it is none, or an earlier mutation broke it
        return content
    at, other = a % len(members), b % len(members)
    name, data = members[at]
    match what:
        case "drop member":
            del members[at]
        case "double member":
            members.append((name, members[other][1]))
        case "rename member":
            members[at] = members[other][0] + "x", data
        case "flip in member" if data:
            byte = b % len(data)
            members[at] = name, data[:byte] + bytes([data[byte] ^ 1 << a % 8]) + data[byte + 1 :]
        case "swap members":
            members[at], members[other] = (name, members[other][1]), (members[other][0], data)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, data in members:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if what == "deflate" else zipfile.ZIP_STORED)
    return made.getvalue()


def sealed_anew(content: bytes) -> bytes:
    """The content with a digest that fits, where there is one: what lpk itself might have written, had it a fault."""
    try:
        if content[:1] == b"{":
            tree = files.schema.parsed(content)
            return (
                json.dumps(tree | {"digest": files._digest(content.decode())}).encode() if "digest" in tree else content
            )
        file = io.BytesIO(content)
        header = tensors.read_header(file, len(content))
        metadata = header.metadata["lpk"]
        own = tensors.read(file, header.entries)
        return tensors.written(own, {"lpk": metadata, "digest": tensors.digest(own, metadata)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return content


# --- the test ---------------------------------------------------------------------------------------------------------


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
