"""Files that others wrote: the state dict in them is found, nothing is unpickled, and what is wrong is named."""

import io
import os
import zipfile

import pytest
import torch
import typer

from lpk.cli import app
from lpk.tickets import files, state_dicts
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.same import same

# --- which state dict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"net": state, "acc": 91.5, "epoch": 3},
        lambda state: {"network": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"model_state": state, "optimizer_state": {"weight": {"exp_avg": torch.ones(2)}}},
        lambda state: {"params": state, "rng": torch.get_rng_state()},
        lambda state: {"state_dict_ema": state, "args": {"lr": 0.1}},
        lambda state: {"ema": {"module": state, "decay": 0.99}},
        lambda state: {"state_dict": state, "state_dict_ema": {name: t + 1 for name, t in state.items()}},
        lambda state: {"model": {"name": "resnet", "depth": 18}, "weights": state},
    ],
)
def test_the_one_state_dict_of_a_file_is_found(tickets, tmp_path, content):
    for ticket in tickets:
        torch.save(content(ticket.state_dict), tmp_path / f"{ticket.round}.pt")
    assert same(Tickets.from_checkpoints(tmp_path), tickets)


def test_of_several_state_dicts_key_names_one(tickets, tmp_path, monkeypatch):
    for ticket in tickets:
        other = {name: tensor + 1 for name, tensor in ticket.state_dict.items()}
        torch.save({"net": other, "ema": {"shadow": ticket.state_dict}, "epoch": 1}, tmp_path / f"{ticket.round}.pt")
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds several state dicts: say by `key` .*'net', 'ema.shad"):
        Tickets.from_checkpoints(tmp_path)
    for key in ("ema.shadow", "ema"):
        assert same(Tickets.from_checkpoints(tmp_path, key=key), tickets)
    for key in ("best", "ema.best", "epoch.x"):
        with pytest.raises(
            files.FileDamaged, match=rf"0\.pt has nothing under the key '{key}': its keys are 'net', 'ema'"
        ):
            Tickets.from_checkpoints(tmp_path, key=key)
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds no state dict: it is a int"):
        Tickets.from_checkpoints(tmp_path, key="epoch")
    lpk_command = typer.main.get_command(app)
    lpk_command(["import", str(tmp_path), str(tmp_path / "run"), "--key", "ema"], standalone_mode=False)
    assert same(Tickets.load(tmp_path / "run"), tickets)


# --- what a file's own checksums and sizes say ------------------------------------------------------------------------


def test_a_changed_bit_in_a_pt_file_is_found(tickets, tmp_path):
    path = tmp_path / "0.pt"
    torch.save(tickets[2].state_dict, path)
    content, right = path.read_bytes(), state_dicts.load(path)
    found = 0
    for bit in range(0, 8 * len(content), 8 * len(content) // 300 | 1):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:  # the archive has bytes without a meaning: what pads it, times
            read = state_dicts.load(path)
        except files.FileDamaged as error:
            assert "0.pt" in str(error) and len(str(error).splitlines()) == 1
            found += 1
        else:
            assert read.keys() == right.keys() and all(torch.equal(read[name], right[name]) for name in read)
    assert found > 100
    for length in (len(content) - 1, len(content) // 2, 100):
        path.write_bytes(content[:length])
        with pytest.raises(files.FileDamaged, match=r"0\.pt is damaged"):
            state_dicts.load(path)
    path.write_bytes(
        content[:2000] + b"x" + content[2001:] + content
    )  # PyTorch would read the first, zipfile the second
    with pytest.raises(files.FileDamaged, match=r"0\.pt is (not packed as torch\.save does it|damaged)"):
        state_dicts.load(path)


def packed_again(content, *, method=zipfile.ZIP_STORED, twice=False):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", method) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
            if twice and member.endswith("/0"):
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(member, old.read(member))
    return made.getvalue()


@pytest.mark.parametrize("how", [{"method": zipfile.ZIP_DEFLATED}, {"twice": True}])
def test_a_pt_file_that_torch_save_did_not_pack(tmp_path, how):
    """Deflated, 2.4 GiB of zeros are 2.4 MB."""
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(packed_again((tmp_path / "x.pt").read_bytes(), **how))
    with pytest.raises(files.FileDamaged, match=r"x\.pt is not packed as torch\.save does it"):
        state_dicts.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.empty(3, device="meta"), "holds 'a' as a meta tensor"),
        (lambda: torch.eye(3).to_sparse(), "holds 'a' as a sparse_coo tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "holds 'a' as a quantized tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "holds 'a' as a nested tensor"),
        (lambda: torch.ones(1).expand(2**40), "holds tensors of 4,398,046,511,104 bytes in"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, which calls some of these a prototype
def test_tensors_of_other_kinds_are_named(tmp_path, tensor, words):
    try:
        made = tensor()
    except Exception as error:
        pytest.skip(f"this PyTorch does not make it: {error}")
    with pytest.raises(ValueError, match=rf"ticket 0 {words}" if "holds 'a'" in words else ""):
        Tickets.from_state_dicts([{"a": made}] if "holds 'a'" in words else [])
    torch.save({"a": made}, tmp_path / "x.pt")
    # PyTorch 2.15 itself refuses to read a nested tensor
    with pytest.raises(files.FileDamaged, match=rf"x\.pt ({words}|holds a torch\._utils\._rebuild_nested)") as error:
        state_dicts.load(tmp_path / "x.pt")
    assert len(str(error.value).splitlines()) == 1


def test_other_keys_than_names_and_dicts_that_hold_themselves(tmp_path):
    itself: dict = {"epoch": 3}
    itself["self"] = itself
    for content in ({0: torch.ones(2)}, {"a": torch.ones(2), 0: torch.ones(2)}, itself):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(files.FileDamaged, match=r"x\.pt holds no state dict: its keys are "):
            state_dicts.load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="ticket 0 holds a tensor under 0, which is no name"):
        Tickets.from_state_dicts([{0: torch.ones(2)}])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(files.FileDamaged, match=r"x\.pt is a pipe or a device"):
        Tickets.from_checkpoints(tmp_path / "x.pt")


def test_views_that_are_conjugate_or_negative_are_read_as_they_look(tmp_path):
    value = torch.complex(torch.ones(2), torch.tensor([2.0, 3.0]))
    torch.save({"a": value.conj().imag, "b": value.clone().conj()}, tmp_path / "x.pt")
    read = state_dicts.load(tmp_path / "x.pt")
    assert read["a"].tolist() == [-2, -3] and not read["a"].is_neg() and not read["b"].is_conj()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_file_that_would_have_to_be_unpickled_is_named(tmp_path):
    torch.save(make_network(), tmp_path / "module.pt")
    with pytest.raises(
        files.FileDamaged, match=r"module\.pt holds a torch\.nn\S+Sequential, and unpickling it"
    ) as error:
        state_dicts.load(tmp_path / "module.pt")
    assert len(str(error.value).splitlines()) == 1


def test_unpickling_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"state_dict": make_network().state_dict(), "args": Evil()}, tmp_path / "0.pt")
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds a posix\.mkdir"):
        Tickets.from_checkpoints(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_damaged_pickle_is_a_short_message(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes()
    for name in (b"collections\n", b"torch._utils\n"):
        content = content.replace(name, b"x" * 5000 + b"\n")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(files.FileDamaged, match=r"w\.pt holds a x+, and unpickling it could run code") as error:
        state_dicts.load(tmp_path / "w.pt")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(files.FileDamaged, match=name):
        Tickets.from_checkpoints(tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {}}, {"epoch": 3}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(files.FileDamaged, match=r"x\.pt holds no state dict"):
        Tickets.from_checkpoints(tmp_path)
