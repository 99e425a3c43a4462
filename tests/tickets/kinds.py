"""A file of every kind that lpk reads, and what its reader has to make of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lpk import presets
from lpk.directory import MANIFEST
from lpk.experiments import findings
from lpk.networks.flat import Layout
from lpk.pruning.resuming import read_checkpoint
from lpk.reporting import report
from lpk.reporting.results import Results
from lpk.run import read_manifest
from lpk.sparse import load_sparse, save_sparse
from lpk.tickets import files, nested, state_dicts
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.store import TicketStore
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests.conftest import TINY_PRESET
from tests.tickets.mutations import BYTES, TREE, ZIP

FORMAT1 = Path(__file__).parent / "format1"
OLD = FORMAT1 / "run"


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
        "manifest": Kind(root / MANIFEST, manifest_and_preset),
        "results": Kind(root / "results.json", lambda path: (found := Results.read(path), report.summary(found))),
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
    return read_checkpoint(path, layout, whole)


def manifest_and_preset(path: Path) -> Any:
    manifest = read_manifest(path.parent)
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


READERS: dict[str, Callable[[Path], Any]] = {
    "tickets.json": lambda path: Tickets.load(path.parent),
    "ticket": lambda path: load_sparse(path),
    "pooled": Pooled.load,
    "x.pt": state_dicts.load,
    "x.safetensors": state_dicts.load,
    "manifest.json": lambda path: read_manifest(path.parent),
    "results.json": Results.read,
}
