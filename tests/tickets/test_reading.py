"""Files that may be anything: pipes, devices and links, and what says that it is larger than it is."""

import json
import os

import pytest
import torch

from lpk.sparse import load_sparse
from lpk.sparse.compact import FORMAT, KIND
from lpk.tickets import files
from lpk.tickets.pooled import Pooled
from tests.tickets.kinds import READERS, same


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
