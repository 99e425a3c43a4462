import errno
import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

import lpk
from lpk.tickets import files
from lpk.tickets.store import MANIFEST, MASK
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.same import same
from tests.tables import cells

# --- files ------------------------------------------------------------------------------------------------------------


def test_saved_tickets_load_the_same(tickets, tmp_path):
    tickets.save(tmp_path / "run")
    assert same(Tickets.load(tmp_path / "run"), tickets)
    assert [t.keep for t in Tickets.load(tmp_path / "run")] == [t.keep for t in tickets]


def test_a_notebook_shows_rounds_and_layers(tickets):
    assert repr(tickets) == "Tickets(5, densities 1.0000 to 0.4095, 486 prunable weights)"
    rounds = cells(tickets._repr_html_())
    assert rounds == [[str(t.round), str(t.keep), f"{100 * t.density:.2f}%"] for t in tickets]
    shown = tickets[3]._repr_html_()
    assert repr(tickets[3]) in shown and "script" not in shown and "style" not in shown
    kept = {name: int(mask.sum()) for name, mask in tickets[3].masks.items()}
    assert cells(shown) == [
        ["0.weight", "6 × 1 × 3 × 3", str(kept["0.weight"]), f"{100 * kept['0.weight'] / 54:.2f}%"],
        ["3.weight", "8 × 6 × 3 × 3", str(kept["3.weight"]), f"{100 * kept['3.weight'] / 432:.2f}%"],
    ]


def test_a_slice_is_tickets_whose_rounds_count_anew(tickets, tmp_path):
    sparse = tickets[1::2]
    assert isinstance(sparse, Tickets) and [ticket.round for ticket in sparse] == [0, 1]
    assert [ticket.round for ticket in tickets] == [0, 1, 2, 3, 4], "the tickets themselves were changed"
    assert torch.equal(sparse[1].mask, tickets[3].mask) and sparse[1].flat is tickets[3].flat
    sparse.save(tmp_path)
    assert same(Tickets.load(tmp_path), sparse)
    with pytest.raises(ValueError, match="dense to sparse"):
        tickets[::-1]
    with pytest.raises(ValueError, match="no tickets"):
        tickets[5:]


def test_a_slice_and_a_list_of_tickets_are_pooled_alike(tickets, validation, calibration):
    def pool(given):
        return lpk.pool(given, 1, model=make_network(), validation=validation, calibration=calibration, progress=False)

    expected = pool(tickets[2:4])
    assert expected.round == 1 and expected.keep == tickets[3].keep
    for given in ([tickets[2], tickets[3]], [tickets[2].state_dict, tickets[3].state_dict]):
        assert torch.equal(pool(given).flat.weights, expected.flat.weights)
    with pytest.raises(TypeError, match="ticket 0 is a str; a state dict or a module is needed"):
        pool(["round00.safetensors", "round01.safetensors"])
    with pytest.raises(ValueError, match="tickets and state dicts are mixed"):
        pool([tickets[2], tickets[3].state_dict])


def test_a_ticket_file_is_a_plain_state_dict_and_a_mask(tickets, tmp_path):
    tickets.save(tmp_path)
    state = safetensors.torch.load_file(next(tmp_path.glob("round-02-*")))
    del state[MASK]
    make_network().load_state_dict(state)


@pytest.mark.parametrize("damage", ["truncate", "flip", "swap"])
def test_damaged_ticket_is_named(tickets, tmp_path, damage):
    tickets.save(tmp_path)
    first, second = sorted(tmp_path.glob("round-*"))[1:3]
    content = bytearray(second.read_bytes())
    if damage == "truncate":
        content = content[:-100]
    elif damage == "flip":
        content[-5] ^= 1
    else:
        content = first.read_bytes()
    second.write_bytes(content)
    with pytest.raises(files.FileDamaged, match=second.name):
        Tickets.load(tmp_path)


def test_manifest_cannot_reach_outside_its_directory(tickets, tmp_path):
    tickets.save(tmp_path / "a")
    path = tmp_path / "a" / MANIFEST
    manifest = files.read_json(path)
    for name in ("../secret.safetensors", "/etc/passwd", "..", "", "a\0b", "\ud800", "x" * 300, 3):
        manifest["tickets"][0]["file"] = name
        files.write_json(path, manifest)
        with pytest.raises(files.FileDamaged, match=r"not a file of this|file is 3; it must be a string"):
            Tickets.load(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "layout": {}}'])
def test_damaged_manifest_is_named(tickets, tmp_path, content):
    tickets.save(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(files.FileDamaged, match=MANIFEST):
        Tickets.load(tmp_path)


def test_full_disk_leaves_the_older_tickets(tickets, tmp_path, monkeypatch):
    tickets.save(tmp_path)
    changed = Tickets.from_state_dicts([t.state_dict | {"8.bias": torch.ones(3)} for t in tickets])
    written = 0
    fsync = os.fsync

    def full(descriptor):
        nonlocal written
        written += 1
        if written > 6:  # two calls for each file: the fourth file does not fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*round-03.*No space left"):
        changed.save(tmp_path)
    monkeypatch.undo()
    assert same(Tickets.load(tmp_path), tickets)
    assert not list(tmp_path.glob(".*.safetensors.*")), "a temporary file was left behind"
    changed.save(tmp_path)
    assert same(Tickets.load(tmp_path), changed)
    assert len(list(tmp_path.glob("round-*"))) == len(tickets), "files of the older tickets were left behind"


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tickets.load(tmp_path / "nowhere")


# --- other people's networks ------------------------------------------------------------------------------------------


def states(tickets):
    return [t.state_dict for t in tickets]


def test_masks_are_read_from_zeros(tickets):
    read = Tickets.from_state_dicts(states(tickets))
    assert read.layout.prunable == tickets.layout.prunable
    assert same(read, tickets)


def test_masks_are_taken_as_given(tickets):
    masks = [None, *(t.masks for t in tickets[1:])]
    assert same(Tickets.from_state_dicts(states(tickets), masks), tickets)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_dropped(tickets, prefix):
    assert same(
        Tickets.from_state_dicts([{prefix + k: v for k, v in s.items()} for s in states(tickets)]),
        tickets,
    )


def test_pruned_by_pytorch(network):
    first = {k: v.clone() for k, v in network.state_dict().items()}
    prune.global_unstructured([(network[0], "weight"), (network[3], "weight")], prune.L1Unstructured, amount=0.4)
    read = Tickets.from_state_dicts([first, network.state_dict()])
    total = 54 + 432
    assert read[0].keep == total and read[1].keep == total - round(0.4 * total)
    assert torch.equal(read[1].state_dict["3.weight"], network[3].weight.detach())


def test_checkpoints_of_each_kind(tickets, tmp_path):
    paths = [tmp_path / f"{i}.{kind}" for i, kind in enumerate(["pt", "pt", "pth", "safetensors"])]
    s = states(tickets)
    torch.save(s[0], paths[0])
    torch.save({"state_dict": s[1], "epoch": 3}, paths[1])
    torch.save({"model": s[2]}, paths[2])
    safetensors.torch.save_file(s[3], paths[3])
    assert same(Tickets.from_checkpoints(paths), tickets[:4])


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(files.FileDamaged, match=name):
            Tickets.from_checkpoints([tmp_path / name])
    assert not (tmp_path / "pwned").exists()


def test_bad_state_dicts_name_the_culprit(tickets):
    s = states(tickets)
    with pytest.raises(ValueError, match=r"ticket 2 .*'8\.bias' has shape"):
        Tickets.from_state_dicts([s[0], s[1], s[2] | {"8.bias": torch.zeros(5)}])
    with pytest.raises(ValueError, match=r"ticket 1 .*'8\.bias' is missing"):
        Tickets.from_state_dicts([s[0], {k: v for k, v in s[1].items() if k != "8.bias"}])
    with pytest.raises(ValueError, match=r"ticket 1: 8\.bias\[0\] is nan"):
        Tickets.from_state_dicts([s[0], s[1] | {"8.bias": torch.full((3,), torch.nan)}])
    with pytest.raises(ValueError, match="dense to sparse"):
        Tickets.from_state_dicts(s[::-1])
    with pytest.raises(ValueError, match="no state dicts"):
        Tickets.from_state_dicts([])
    with pytest.raises(ValueError, match="no ticket has a zero"):
        Tickets.from_state_dicts([make_network().state_dict()])


def test_bad_masks_name_the_culprit(tickets):
    s = states(tickets)[:1]
    with pytest.raises(ValueError, match=r"ticket 0: the mask of '3\.weight' has shape \(2,\)"):
        Tickets.from_state_dicts(s, [{"3.weight": torch.ones(2, dtype=torch.bool)}])
    with pytest.raises(ValueError, match=r"'4\.nothing' belongs to no entry"):
        Tickets.from_state_dicts(s, [{"4.nothing": torch.ones(2)}])
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        Tickets.from_state_dicts(s, [{"0.weight": torch.full((6, 1, 3, 3), 0.5)}])
    with pytest.raises(ValueError, match="1 state dicts but 2 masks"):
        Tickets.from_state_dicts(s, [None, None])


def test_tied_parameters_survive_files(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[0].weight.data[0, 0] = 0
    made = Tickets.from_state_dicts([model.state_dict()])
    assert made.layout.aliases == {"1.weight": "0.weight"}
    made.save(tmp_path)
    assert same(Tickets.load(tmp_path), made)
