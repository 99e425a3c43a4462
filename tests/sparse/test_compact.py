"""Files of sparse networks: every bit comes back, they are small, and what is damaged is refused."""

import hashlib
import json
import math
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import lpk
from lpk import models, ops
from lpk.networks.flat import Layout
from lpk.sparse import load_sparse, save_sparse
from lpk.sparse.compact import FORMAT, KIND, Remaining
from lpk.tickets import files

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def random_pruned(shape, dtype, density, seed):
    """A tensor of any bits (NaN, -0 and denormals among them) and its mask; +0 outside."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.iinfo(BITS[dtype])
    bits = torch.randint(limits.min, limits.max, shape, generator=generator, dtype=BITS[dtype])
    mask = torch.rand(shape, generator=generator) < density
    return (bits * mask).view(dtype), mask


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(0, 30), max_size=3),
    dtype=st.sampled_from(list(BITS)),
    density=st.sampled_from([0.0, 0.002, 0.03, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@example(shape=[], dtype=torch.float32, density=1.0, seed=0)
@example(shape=[3, 0, 2], dtype=torch.float16, density=1.0, seed=0)
def test_every_bit_comes_back(shape, dtype, density, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "network.safetensors"
    tensor, mask = random_pruned(shape, dtype, density, seed)
    state = {"z": torch.arange(3), "weight": tensor, "flag": torch.tensor(True), "a": torch.randn(2, 2)}
    save_sparse(path, state, {"weight": mask})
    read, masks = load_sparse(path)
    assert list(read) == list(state) and list(masks) == ["weight"]
    assert same_bits(read.pop("weight"), tensor) and torch.equal(masks["weight"], mask)
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype for name, tensor in read.items())


def test_zeros_that_survive_are_told_from_those_that_do_not(tmp_path):
    weight = torch.tensor([0.0, -0.0, 1.0, 0.0, -0.0])
    mask = torch.tensor([True, True, True, False, False])
    save_sparse(tmp_path / "net", {"weight": weight}, {"weight": mask})
    state, masks = load_sparse(tmp_path / "net")
    assert state["weight"].signbit().tolist() == [False, True, False, False, False]
    assert torch.equal(masks["weight"], mask) and torch.equal(state["weight"], weight)


@pytest.mark.parametrize("indices", [[], [0], [1999], [254], [255], [256], [0, 255, 511, 1022, 1533], range(700, 900)])
def test_gaps_of_every_length(indices):
    mask = torch.zeros(2000, dtype=torch.bool)
    mask[list(indices)] = True
    remaining = Remaining.of(torch.randn(2000), mask)
    assert remaining.encoding == "gaps" and torch.equal(remaining.mask(), mask)


def test_tensors_that_are_not_contiguous(tmp_path):
    weight = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last)
    mask = torch.rand(8, 3, 5, 5) < 0.3
    mask = mask.to(memory_format=torch.channels_last)
    weight.mul_(mask)
    save_sparse(tmp_path / "net", {"weight": weight}, {"weight": mask})
    state, masks = load_sparse(tmp_path / "net")
    assert torch.equal(state["weight"], weight) and torch.equal(masks["weight"], mask)


def test_tied_entries_are_written_once(tmp_path):
    weight = torch.randn(100, 100)
    mask = weight > 1
    weight.mul_(mask)
    state = {"a": weight, "b": weight}
    save_sparse(tmp_path / "one", state, {"b": mask})
    save_sparse(tmp_path / "both", state, {"a": mask, "b": mask})
    for name in ("one", "both"):
        read, masks = load_sparse(tmp_path / name)
        assert read["a"].data_ptr() == read["b"].data_ptr() and torch.equal(read["b"], weight)
        assert list(masks) == ["a"] and torch.equal(masks["a"], mask)
    with pytest.raises(ValueError, match="'b' and 'a' are tied, but their masks differ"):
        save_sparse(tmp_path / "net", state, {"a": mask, "b": torch.ones_like(mask)})


@pytest.mark.parametrize(("density", "most"), [(1.0, 1.04), (0.2, 0.24), (0.05, 0.065), (0.018, 0.025)])
def test_a_file_is_small_in_proportion(density, most, tmp_path):
    torch.manual_seed(0)
    state = models.build("resnet18", classes=10, shape=(3, 32, 32)).state_dict()
    layout = Layout.of_model(models.build("resnet18", classes=10, shape=(3, 32, 32)))
    flat = layout.flatten(state)
    mask = ops.magnitude_mask(flat.weights, round(density * layout.n))
    flat.weights.masked_fill_(~mask, 0.0)
    state = layout.unflatten(flat)
    save_sparse(tmp_path / "net", state, layout.masks(mask))
    dense = len(safetensors.torch.save(state))
    assert (tmp_path / "net").stat().st_size <= most * dense
    keep = {entry.name: int(mask[entry.span].count_nonzero()) for entry in layout.weights}
    rest = sum(tensor.nbytes for name, tensor in state.items() if name not in keep)
    where = sum(min(-(-e.shape.numel() // 8), keep[e.name] + e.shape.numel() // 255) for e in layout.weights)
    assert (tmp_path / "net").stat().st_size <= 4 * sum(keep.values()) + where + rest + 40_000  # the header


# --- a reader from docs/export.md, without lpk and PyTorch ------------------------------------------------------------


def read_as_documented(content):
    """Name to (shape, values, indices) of the pruned entries: float32 only."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["lpk"])
    assert description["kind"] == "sparse network" and description["format"] == 2
    data = content[8 + length :]

    def part(name):
        start, stop = header[name]["data_offsets"]
        return data[start:stop]

    digest = hashlib.sha256(header["__metadata__"]["lpk"].encode())
    for name in sorted(set(header) - {"__metadata__"}):
        dtype = {"F32": "torch.float32", "U8": "torch.uint8"}[header[name]["dtype"]]
        digest.update(f"{name} {dtype} {tuple(header[name]['shape'])};".encode() + part(name))
    assert digest.hexdigest() == header["__metadata__"]["digest"]

    result = {}
    for name, shape in description["sparse"].items():
        values = [value for (value,) in struct.iter_unpack("<f", part(f"{name}/values"))]
        if f"{name}/bits" in header:
            bits = part(f"{name}/bits")
            indices = [i for i in range(math.prod(shape)) if bits[i // 8] >> (i % 8) & 1]
        else:
            indices, position = [], 0
            for byte in part(f"{name}/gaps"):
                position += byte
                if byte < 255:
                    indices.append(position)
                    position += 1
        result[name] = shape, values, indices
    return result


def test_a_reader_that_follows_the_documentation(tmp_path):
    torch.manual_seed(0)
    weights = {"dense": torch.randn(6, 5), "half": torch.randn(40, 33), "few": torch.randn(90, 100)}
    masks = {
        "dense": torch.ones(6, 5) > 0,
        "half": torch.rand(40, 33) < 0.5,
        "few": torch.rand(90, 100) < 0.002,
    }
    state = {name: weights[name] * mask for name, mask in masks.items()} | {"bias": torch.randn(6)}
    save_sparse(tmp_path / "net", state, masks)
    for name, (shape, values, indices) in read_as_documented((tmp_path / "net").read_bytes()).items():
        assert shape == list(masks[name].shape)
        assert indices == masks[name].reshape(-1).nonzero().view(-1).tolist()
        assert values == state[name].reshape(-1)[indices].tolist()


# --- what is refused --------------------------------------------------------------------------------------------------


def small(path):
    torch.manual_seed(0)
    masks = {"a": torch.rand(3, 4) < 0.5, "b": torch.rand(300) < 0.01}
    tied = torch.randn(2)
    state = {name: torch.randn(mask.shape) * mask for name, mask in masks.items()} | {"c": tied, "d": tied}
    save_sparse(path, state, masks)
    return path.read_bytes()


def test_a_changed_byte_is_found(tmp_path):
    path = tmp_path / "net"
    content = small(path)
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        with pytest.raises(files.FileDamaged, match="net"):
            load_sparse(path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file_is_found(tmp_path, length):
    path = tmp_path / "net"
    path.write_bytes(small(path)[:length])
    with pytest.raises(files.FileDamaged, match="net"):
        load_sparse(path)


def test_foreign_files(tmp_path, tickets):
    tickets.save(tmp_path / "tickets")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "plain")
    (tmp_path / "text").write_text("no tensors here")
    for path, message in (
        (next((tmp_path / "tickets").glob("round-00*")), "is no sparse network"),
        (tmp_path / "plain", "not written by lpk"),
        (tmp_path / "text", "not a safetensors file"),
    ):
        with pytest.raises(files.FileDamaged, match=message):
            load_sparse(path)
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        load_sparse(tmp_path / "nothing")


HEADER = {
    "kind": KIND,
    "format": FORMAT,
    "order": ["w"],
    "aliases": {},
    "sparse": {"w": [3, 3]},
    "keep": 2,
    "weights": 9,
    "density": 2 / 9,
}
PARTS = {"w/values": torch.ones(2), "w/bits": torch.tensor([3, 0], dtype=torch.uint8)}


def bytes_(*values):
    return torch.tensor(values, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ({"format": 3}, {}),
        ({"format": None}, {}),
        ({"keep": True}, {}),
        ({"sparse": {"w": [3, 4]}}, {}),
        ({"sparse": {"w": [3, -3]}}, {}),
        ({"sparse": {"w": [1.5, 6]}}, {}),
        ({"sparse": {"w": 9}}, {}),
        ({"sparse": {"v": [3, 3]}}, {}),
        ({"sparse": {"w": [10**15, 10**15]}}, {}),
        ({"sparse": {"w": [10**15]}, "weights": 10**15, "density": 2e-15}, {"w/bits": None, "w/gaps": bytes_(0, 0)}),
        ({"sparse": []}, {}),
        ({"keep": 3}, {}),
        ({"weights": 8}, {}),
        ({"density": 0.5}, {}),
        ({"order": []}, {}),
        ({"order": ["w", "w"]}, {}),
        ({"order": ["w", 3]}, {}),
        ({"aliases": {"v": "u"}}, {}),
        ({}, {"w": torch.ones(3, 3)}),
        ({}, {"v": torch.ones(3, 3)}),
        ({}, {"w/gaps": bytes_(0, 0)}),
        ({}, {"w/bits": None}),
        ({}, {"w/values": None}),
        ({}, {"w/values": torch.ones(3)}),
        ({}, {"w/values": torch.ones(2, 1)}),
        ({}, {"w/values": torch.ones(2, dtype=torch.int32)}),
        ({}, {"w/bits": bytes_(3)}),
        ({}, {"w/bits": bytes_(3, 0).view(2, 1)}),
        ({}, {"w/bits": bytes_(3, 0, 0)}),
        ({}, {"w/bits": bytes_(1, 2)}),
        ({}, {"w/bits": torch.tensor([3, 0], dtype=torch.int32)}),
        ({}, {"w/bits": None, "w/gaps": bytes_(0)}),
        ({}, {"w/bits": None, "w/gaps": bytes_(0, 8)}),
        ({}, {"w/bits": None, "w/gaps": bytes_(255, 0, 0)}),
    ],
)
def test_a_sealed_file_that_contradicts_itself(tmp_path, header, parts):
    tensors = {name: tensor for name, tensor in (PARTS | parts).items() if tensor is not None}
    files.save_tensors(tmp_path / "net", tensors, HEADER | header)
    with pytest.raises(files.FileDamaged, match="net"):
        load_sparse(tmp_path / "net")


def test_the_file_that_they_were_made_from_is_read(tmp_path):
    files.save_tensors(tmp_path / "net", PARTS, HEADER)
    state, _ = load_sparse(tmp_path / "net")
    assert state["w"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_pruned_weights_of_other_layers(tmp_path):
    """Only convolutions and linear layers are packed; BatchNorm's weights may have masks, too."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        network[1].weight[1] = network[1].bias[2] = network[3].weight[:, :9] = 0
    state = network.state_dict()
    save_sparse(tmp_path / "a", state, {name: state[name] != 0 for name in ("1.weight", "1.bias", "3.weight")})
    inputs = torch.randn(5, 2, 5, 5)
    made = lpk.sparsify(network, tmp_path / "a")
    torch.testing.assert_close(made(inputs), network(inputs).detach())
    made.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_input_is_named(tmp_path):
    path, weight, mask = tmp_path / "net", torch.eye(2), torch.eye(2) > 0
    for state, masks, kind, message in (
        ({"a": weight}, {"b": mask}, ValueError, "mask of 'b' belongs to no entry"),
        ({"a": weight}, {"a": mask[0]}, ValueError, r"mask of 'a' has shape \[2\], not \[2, 2\]"),
        ({"a": weight}, {"a": mask.float()}, TypeError, r"mask of 'a' is torch\.float32"),
        ({"a": weight.int()}, {"a": mask}, TypeError, r"'a' is torch\.int32"),
        ({"a": weight + 1}, {"a": mask}, ValueError, "'a' has a weight outside its mask"),
        ({"a": weight, "a/bits": weight + 1}, {"a": mask}, ValueError, "an entry 'a/bits'"),
    ):
        with pytest.raises(kind, match=message):
            save_sparse(path, state, masks)
    assert not path.exists()
