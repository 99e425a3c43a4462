"""Files of format 1, which lpk 0.1.0 wrote: they load, and what goes on from them is of format 2."""

import json

from lpk import presets
from lpk.pruning.resuming import CHECKPOINT, REWIND, read_checkpoint
from lpk.reporting.results import Results
from lpk.run import read_manifest
from lpk.sparse import load_sparse
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.store import MANIFEST, TicketStore
from tests.tickets.kinds import (
    FORMAT1,
    OLD,
    all_of,
    loaded,
    same,
    state_of_round,
    tickets_of_format1,
)


def test_files_of_format_1_load():
    """Written by lpk 0.1.0."""
    made = tickets_of_format1()
    expected = [(ticket.state_dict, ticket.masks) for ticket in made]
    assert same(all_of(OLD), expected) and TicketStore.open(OLD / "tickets").metadata["fraction"] == 0.2
    pooled = Pooled.load(OLD / "pooled" / "interpolation" / "round-02.safetensors")
    assert same((pooled.state_dict, pooled.masks), expected[2])
    assert pooled.accuracy == 0.5 and pooled.steps == (Step(1, 0.5, 0.5, True), Step(0, None, None, False))
    assert same(load_sparse(FORMAT1 / "sparse.safetensors"), expected[2])
    assert list(load_sparse(FORMAT1 / "sparse.safetensors")[0]) == list(made.layout.order)
    state, metadata = loaded(OLD / "tickets" / CHECKPOINT, made.layout)
    assert same(state, state_of_round(9)) and (metadata["round"], metadata["epoch"]) == (2, 2)
    assert metadata["train"]["best"] == float("inf") and metadata["train"]["optimizer"][0][1:] == (0.5, None)
    state, metadata = read_checkpoint(OLD / "tickets" / REWIND, made.layout, {})
    assert same(state, state_of_round(9)) and metadata["epoch"] == 1
    manifest = read_manifest(OLD)
    assert presets.from_dict(manifest["preset"], "manifest.json").imp.rounds == 1
    assert Results.read(OLD / "results.json")["manifest"] == manifest


def test_a_run_of_format_1_that_goes_on_is_of_format_2(tmp_path):
    made = tickets_of_format1()
    for path in (OLD / "tickets").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    store = TicketStore.open(tmp_path)
    store.commit(store.metadata)
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 2
    assert same(all_of(tmp_path), [(ticket.state_dict, ticket.masks) for ticket in made])
