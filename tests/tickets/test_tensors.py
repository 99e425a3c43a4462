"""Safetensors: every dtype comes back, and a header that does not fit its file is named."""

import json
import struct

import pytest
import safetensors.torch
import torch

from lpk.tickets import files, state_dicts
from lpk.tickets import tensors as tensor_file


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
