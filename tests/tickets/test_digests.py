"""Every byte that counts is under a digest; how a JSON file is laid out does not count."""

import hashlib
import json
from contextlib import nullcontext

import pytest

from lpk.tickets import files
from lpk.tickets.store import MANIFEST
from lpk.tickets.tickets import Tickets
from tests.tickets.kinds import (
    OLD,
    all_of,
    same,
    tickets_of_format1,
)


@pytest.mark.parametrize("name", ["tickets.json", "ticket", "checkpoint", "pooled", "sparse", "manifest", "results"])
def test_no_changed_bit_loads_as_other_data(kinds, name):
    """A hundred bits all over the file: of names, shapes, metadata, order and values."""
    kind = kinds[name]
    found = 0
    try:
        for bit in range(0, 8 * len(kind.content), 8 * len(kind.content) // 100 | 1):
            changed = bytearray(kind.content)
            changed[bit // 8] ^= 1 << bit % 8
            kind.path.write_bytes(changed)
            try:
                assert same(kind.read(kind.path), kind.right), f"bit {bit} was changed, and nobody saw it"
            except (ValueError, FileNotFoundError) as error:
                assert kind.path.name in str(error) or str(kind.path.parent) in str(error)
                found += 1
    finally:
        kind.path.write_bytes(kind.content)
    assert found > 0


def test_key_order_carries_no_meaning(kinds):
    """What `jq -S` does to a file: of either format."""
    for name in ("tickets.json", "tickets.json 1", "manifest", "results"):
        kind = kinds[name]
        kind.path.write_text(json.dumps(json.loads(kind.content), sort_keys=True))
        assert same(kind.read(kind.path), kind.right)
        kind.path.write_text(json.dumps(json.loads(kind.content), sort_keys=True, indent=3).replace(": 0.0,", ": 0,"))
        assert same(kind.read(kind.path), kind.right)
        kind.path.write_bytes(kind.content)


def test_layers_that_changed_places_in_a_layout_are_found(kinds):
    """In format 1, whose digest does not cover the layout, the masks tell."""
    tickets = tickets_of_format1()
    for layout, name in (("tickets.json", "tickets.json"), ("tickets.json 1", "tickets.json")):
        kind = kinds[layout]
        content = json.loads(kind.content)
        content["layout"]["order"] = [*reversed(content["layout"]["order"])]
        weights = content["layout"]["weights"]
        if isinstance(weights, list):
            weights.reverse()
            content["digest"] = files._digest(json.dumps(content))
        kind.path.write_text(json.dumps(content))
        with pytest.raises(files.FileDamaged, match=r"round-0[12]\S+ does not fit tickets\.json: lpk\.mask"):
            Tickets.load(kind.path.parent)
        kind.path.write_bytes(kind.content)
        assert same(all_of(kind.path.parent), [(t.state_dict, t.masks) for t in tickets]), name


WRITTEN = [
    (1.0, "1", True),
    (2, "2.0", True),
    (0, "-0", False),
    (0, "-0.0", False),
    (0.0, "-0", False),
    (-0.0, "0", False),
    (-0.0, "-0", True),
]


@pytest.mark.parametrize(("written", "altered", "same"), WRITTEN)
def test_a_digest_is_of_numbers_however_they_are_written(tmp_path, written, altered, same):
    files.write_json(tmp_path / "a.json", {"x": written})
    assert repr(files.read_json(tmp_path / "a.json")["x"]) == repr(written)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace(f'"x": {written}', f'"x": {altered}'))
    with nullcontext() if same else pytest.raises(files.FileDamaged, match="it was altered"):
        assert files.read_json(tmp_path / "a.json")["x"] == written


def test_a_digest_that_is_missing_is_not_taken_for_format_1(tmp_path):
    files.write_json(tmp_path / "a.json", {"format": 2, "x": 1.0})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["digest"] == hashlib.sha256(b'{"format":2,"x":1}').hexdigest()
    assert files.read_json(tmp_path / "a.json") == {"format": 2, "x": 1.0}
    for changed in ({"x": 2}, {"format": 1}, {"digest": 3}, {"digest": None}, {"format": 1, "digest": None}):
        (tmp_path / "a.json").write_text(json.dumps(content | changed))
        with pytest.raises(files.FileDamaged, match=r"a\.json is damaged: it"):
            files.read_json(tmp_path / "a.json")


def test_the_ticket_that_is_listed_is_the_one_that_is_read(kinds, tmp_path):
    first, second = (tickets_of_format1() for _ in range(2))
    first.save(tmp_path)
    second[1].flat.weights[1] = 5.0
    second.save(tmp_path / "other")
    here, there = (next(path.glob("round-01*")) for path in (tmp_path, tmp_path / "other"))
    here.write_bytes(there.read_bytes())
    with pytest.raises(files.FileDamaged, match=r"round-01\S+ is another file than the one that is listed"):
        Tickets.load(tmp_path)


def test_tickets_that_changed_rounds_are_found(tmp_path):
    """In format 1, too, whose list has no digest."""
    for path in (OLD / "tickets").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / MANIFEST).read_text())
    del content["tickets"][0]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(files.FileDamaged, match=r"round-01\S+ is of round 1; tickets\.json lists it as round 0"):
        Tickets.load(tmp_path)
