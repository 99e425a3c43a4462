"""What the files promise: every byte that counts is under a digest, older files load, and sizes are what is there."""

import hashlib
import json
import os
import struct
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch

from lpk import presets, schema
from lpk.experiments import demo
from lpk.pruning.imp import CHECKPOINT, REWIND, _Run
from lpk.run import _read_manifest
from lpk.sparse import load_sparse
from lpk.sparse.compact import FORMAT, KIND
from lpk.tickets import files, state_dicts
from lpk.tickets import tensors as tensor_file
from lpk.tickets.pooled import Pooled, Step
from lpk.tickets.store import MANIFEST, TicketStore
from lpk.tickets.tickets import Tickets
from tests.tickets.test_fuzz import (
    FORMAT1,
    Network,
    all_of,
    loaded,
    make_kinds,
    same,
    state_of_round,
    tickets_of_format1,
)

OLD = FORMAT1 / "run"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return make_kinds(tmp_path_factory.mktemp("kinds"))


# --- digests ----------------------------------------------------------------------------------------------------------


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


def test_a_damaged_pickle_is_a_short_message(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes()
    for name in (b"collections\n", b"torch._utils\n"):
        content = content.replace(name, b"x" * 5000 + b"\n")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(files.FileDamaged, match=r"w\.pt holds a x+, and unpickling it could run code") as error:
        state_dicts.load(tmp_path / "w.pt")
    assert len(str(error.value)) < 1000


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


# --- format 1 ---------------------------------------------------------------------------------------------------------


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
    state, metadata = _Run(Network(), lambda *_: None, made.layout, {})._load(OLD / "tickets" / REWIND, {})
    assert same(state, state_of_round(9)) and metadata["epoch"] == 1
    manifest = _read_manifest(OLD)
    assert presets.from_dict(manifest["preset"], "manifest.json").imp.rounds == 1
    assert demo.read_results(OLD / "results.json")["manifest"] == manifest


def test_a_run_of_format_1_that_goes_on_is_of_format_2(tmp_path):
    made = tickets_of_format1()
    for path in (OLD / "tickets").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    store = TicketStore.open(tmp_path)
    store.commit(store.metadata)
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 2
    assert same(all_of(tmp_path), [(ticket.state_dict, ticket.masks) for ticket in made])


# --- sizes and kinds of files -----------------------------------------------------------------------------------------


def header(path, entries, data=b"", metadata=None):
    text = json.dumps({"__metadata__": metadata or {}, **entries} if metadata else entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"a": entry(0, 8, [2])}, "it has 16 bytes of tensors; 8 are expected"),
        ({"a": entry(8, 16, [2])}, "'a' stands at the bytes 8 to 16, not at 0 to 8"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 16, [3])}, "'b' stands at the bytes 4 to 16, not at 8 to 20"),
        ({"a": entry(0, 16, [2**40])}, "'a' stands at"),
        ({"a": entry(0, 0, [0, 2**62, 2**62]), "b": entry(0, 16, [4])}, "'a' has the shape"),
        ({"a": entry(0, 16, [True, 4])}, r"\['a'\]\.shape is \[True, 4\]"),
        ({"a": entry(0, 16, [-4])}, r"\['a'\]\.shape is \[-4\]"),
        ({"a": entry(0, 16, [4], "F77")}, "'a' has the dtype 'F77'"),
        ({"a": entry(0, 16, [16], "BOOL")}, "'a' holds other bytes than 0 and 1"),
        ({"a": entry(0, 16, [1] * 65)}, "shape is"),
        ({"a": {"dtype": "F32", "shape": [4]}}, r"\['a'\]\.data_offsets is missing"),
        ({"a": 3}, r"\['a'\] is 3; it must be an object"),
        ({"\ud800": entry(0, 16, [4])}, "surrogates not allowed"),
    ],
)
def test_a_header_that_does_not_fit_the_file(tmp_path, entries, words):
    path = tmp_path / "x.safetensors"
    header(path, entries, b"\x02" * 16)
    with pytest.raises(
        files.FileDamaged, match=rf"x\.safetensors is damaged or not a safetensors file: .*{words}"
    ) as e:
        state_dicts.load(path)
    assert len(str(e.value).splitlines()) == 1


def test_a_name_that_stands_twice(tmp_path):
    text = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    (tmp_path / "x.json").write_text('{"a": 1, "a": 2}')
    for read, name in ((state_dicts.load, "x.safetensors"), (files.read_json, "x.json")):
        with pytest.raises(files.FileDamaged, match=f"{name}.* a name stands twice"):
            read(tmp_path / name)


def test_every_dtype_comes_back(tmp_path):
    made = {str(dtype): torch.ones(3).to(dtype) for dtype in tensor_file.OWN} | {"none": torch.ones(0, 3)}
    files.save_tensors(tmp_path / "x", made, {"a": [1, "ä"]})
    read, metadata = files.load_tensors(tmp_path / "x")
    assert metadata == {"a": [1, "ä"]} and read.keys() == made.keys()
    for name, tensor in made.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8))
    theirs = safetensors.torch.load_file(tmp_path / "x") if hasattr(torch, "float8_e8m0fnu") else {}
    assert all(torch.equal(theirs[name].view(torch.uint8), made[name].view(torch.uint8)) for name in theirs)


def test_tensors_that_safetensors_do_not_hold_are_named(tmp_path):
    for tensor, words in (
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
    ):
        with pytest.raises(TypeError, match=rf"'a' is a tensor of .*{words}, which can't be stored"):
            files.save_tensors(tmp_path / "x", {"a": tensor}, {})
    with pytest.raises(ValueError, match="__metadata__"):
        files.save_tensors(tmp_path / "x", {"__metadata__": torch.ones(2)}, {})


def test_a_pooled_file_whose_layout_is_larger_than_its_tensors(kinds, tmp_path):
    tensors, metadata = files.load_tensors(kinds["pooled"].path)
    metadata["layout"]["weights"][0][2] = [2**33]
    files.save_tensors(tmp_path / "x", tensors, metadata)
    with pytest.raises(files.FileDamaged, match=r"x is damaged: 'w\.weight' has shape"):
        Pooled.load(tmp_path / "x")
    tensors, metadata = files.load_tensors(kinds["pooled"].path)
    for mask in (torch.zeros(1, dtype=torch.uint8), tensors["lpk.mask"].int(), tensors["lpk.mask"] & 0):
        files.save_tensors(tmp_path / "x", tensors | {"lpk.mask": mask}, metadata)
        with pytest.raises(files.FileDamaged, match=r"x is damaged: lpk\.mask"):
            Pooled.load(tmp_path / "x")


def test_a_sparse_file_cannot_say_that_it_is_larger_than_it_pays_for(tmp_path):
    empty = {"w/values": torch.ones(0), "w/gaps": torch.ones(0, dtype=torch.uint8)}
    about = {"kind": KIND, "format": FORMAT, "order": ["w"], "aliases": {}, "keep": 0, "density": 0.0}
    for n in (2**24, 2**30):
        files.save_tensors(tmp_path / "x", empty, about | {"sparse": {"w": [n]}, "weights": n})
        if n == 2**24:  # a layer of which nothing remained
            assert load_sparse(tmp_path / "x")[0]["w"].shape == (n,)
            continue
        with pytest.raises(
            files.FileDamaged, match="x is damaged: it says that 1,073,741,824 weights stand in 0 bytes"
        ):
            load_sparse(tmp_path / "x")


READERS = {
    "tickets.json": lambda path: Tickets.load(path.parent),
    "ticket": lambda path: load_sparse(path),
    "pooled": Pooled.load,
    "x.pt": state_dicts.load,
    "x.safetensors": state_dicts.load,
    "manifest.json": lambda path: _read_manifest(path.parent),
    "results.json": demo.read_results,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a pipe or a device; a regular file is needed"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device; a regular file is needed"),
        (lambda path: path.mkdir(), "is a directory; a file is needed"),
    ],
)
def test_only_regular_files_are_read(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(files.FileDamaged, match=f"({name}|/dev/zero) {words}"):
        READERS[name](tmp_path / name)


def test_links(kinds, tmp_path):
    (tmp_path / "link").symlink_to(kinds["pooled"].path)
    assert same(vars(Pooled.load(tmp_path / "link")), kinds["pooled"].right)
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="nothing is a link to what does not exist"):
        files.read_json(tmp_path / "nothing")


def test_json_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files.schema, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"a\.json would have 2,\d+ bytes"):
        files.write_json(tmp_path / "a.json", {"a": "x" * 2000})
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 2000}))
    with pytest.raises(files.FileDamaged, match=r"a\.json has 2,009 bytes; at most 1,000 are read"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="header would have"):
        files.save_tensors(tmp_path / "b", {}, {"a": "x" * 2000})


# --- what stands in JSON and TOML -------------------------------------------------------------------------------------

DAMAGES = {
    "": "Expecting value",
    "[]": "its content is",
    "[" * 5000: "nested too deeply",
    '{"a":' * 5000: "nested too deeply",
    '{"seed": ' + "1" * 5000 + "}": "4300 digits",
    '{"format": 9}': "its format is 9; this version of lpk reads 1 and 2",
    '{"format": true}': "its format is True",
    "\xff": "",
    '{"format": 1}': "is missing",
}


@pytest.mark.parametrize("content", DAMAGES, ids=lambda content: content[:12])
@pytest.mark.parametrize("name", ["tickets.json", "manifest.json", "results.json"])
def test_damaged_json_is_one_line_with_the_files_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(files.FileDamaged, match=f"{name} is damaged: .*{DAMAGES[content]}") as error:
        READERS[name](tmp_path / name)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("layout"), "layout is missing"),
        (lambda c: c["layout"].pop("rest"), r"layout\.rest is missing"),
        (
            lambda c: c["layout"]["weights"][1].__setitem__(1, "float64"),
            r"layout\.weights\[1\]\[1\] is 'float64'; it must",
        ),
        (lambda c: c["layout"]["weights"][1].__setitem__(2, [4, True]), r"layout\.weights\[1\]\[2\] is \[4, True\]"),
        (lambda c: c["layout"]["weights"][1].__setitem__(2, [2**62, 5]), "'a.weight' has the shape"),
        (lambda c: c["layout"]["weights"][1].__setitem__(1, "float16"), "weights are not of one dtype"),
        (lambda c: c["layout"]["weights"].clear(), "weights are not of one dtype"),
        (lambda c: c["layout"]["order"].pop(), "order does not name every tensor once"),
        (lambda c: c["layout"]["order"].append("w.weight"), "order does not name every tensor once"),
        (
            lambda c: c["layout"]["aliases"].update(x="y") or c["layout"]["order"].append("x"),
            "'x' is tied to no tensor",
        ),
        (lambda c: c["tickets"][0].pop("keep"), r"tickets\[0\]\.keep is missing"),
        (lambda c: c["tickets"][2].update(keep=-1), r"tickets\[2\]\.keep is -1; it must be a whole number"),
        (lambda c: c.update(metadata=[]), r"metadata is \[\]; it must be an object"),
    ],
)
def test_what_in_a_layout_is_wrong_is_named(tmp_path, change, words):
    tickets_of_format1().save(tmp_path)
    content = files.read_json(tmp_path / MANIFEST)
    change(content)
    files.write_json(tmp_path / MANIFEST, content)
    with pytest.raises(files.FileDamaged, match=rf"tickets\.json is damaged: .*{words}"):
        Tickets.load(tmp_path)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"tensor": "7"}, "stands for no value"),
        ({"tensor": 0}, "stands for no value"),
        ({"dict": [[1]]}, "stands for no value"),
        ({"dict": [[{"list": []}, 1]]}, "stands for no value"),
        ({"list": [{"other": 1}]}, "stands for no value"),
        ([1], "stands for no value"),
        ({"list": [], "tuple": []}, "stands for no value"),
    ],
)
def test_a_state_of_train_that_nobody_took_apart(kinds, tmp_path, tree, words):
    tensors, metadata = files.load_tensors(kinds["checkpoint"].path)
    files.save_tensors(tmp_path / CHECKPOINT, tensors, metadata | {"train": tree})
    with pytest.raises(files.FileDamaged, match=rf"{CHECKPOINT} is damaged: in the state of train, .*{words}"):
        loaded(tmp_path / CHECKPOINT, tickets_of_format1().layout)


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 5000,
        "a = " + "1" * 5000,
        "[data]\nname = 1e999",
        '["a\\nb"]',
        "[train]\nlr = " + "1" * 400,
        f'[data]\nname = "{"x" * 5000}"',
        "x" * 5000 + " = 1",
        "\ud800",
    ],
    ids=range(8),
)
def test_damaged_toml_is_one_line_with_the_files_name(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"mine\.toml") as error:
        presets.load(tmp_path / "mine.toml")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "value", ["x" * 5000, [{"a" * 50: "b" * 50}] * 9, {i: {j: [1] * 9 for j in range(9)} for i in range(9)}]
)
def test_values_in_messages_are_short(value):
    text = schema.shortened(value)
    assert len(text) < 130 and text.startswith(repr(value)[:5])
