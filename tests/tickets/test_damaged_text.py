"""What stands in JSON and TOML: what is wrong there is named in one short line."""

import pytest

from lpk import presets, schema
from lpk.pruning.resuming import CHECKPOINT
from lpk.tickets import files
from lpk.tickets.store import MANIFEST
from lpk.tickets.tickets import Tickets
from tests.tickets.kinds import READERS, loaded, tickets_of_format1

DAMAGES = {
    "": "Expecting value",
    "[]": "its content is",
    "[" * 500_000: "nested too deeply",  # Python 3.14 reads what its stack has room for
    '{"a":' * 500_000: "nested too deeply",
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
