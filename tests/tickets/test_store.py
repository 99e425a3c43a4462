"""Directories of tickets: a user's files stay, readers see whole tickets, what is removed is not made again."""

import shutil
import threading

import pytest
import safetensors.torch
from torch.utils.data import DataLoader, TensorDataset

import lpk
from lpk.tickets import directories
from lpk.tickets.store import MANIFEST
from lpk.tickets.tickets import Tickets
from tests.conftest import make_images, make_network, random_tickets, sgd
from tests.content import content
from tests.same import same

OPTIONS = {"epochs": 2, "rounds": 1, "rewind": 1, "seed": 0, "progress": False}


# --- only what the earlier manifest lists is removed ------------------------------------------------------------------


def test_a_users_files_beside_tickets_stay(tmp_path):
    names = ("round-best.safetensors", "round-1.safetensors", "round-00-deadbeef.safetensors", "round-00.txt", "notes")
    own = {name: name.encode() for name in names}
    for name, text in own.items():
        (tmp_path / name).write_bytes(text)
    random_tickets(0).save(tmp_path)
    first = {listed for listed in content(tmp_path) if listed not in own}
    second = random_tickets(1, rounds=3)
    second.save(tmp_path)
    left = content(tmp_path)
    assert {name: left[name] for name in own} == own
    assert same(Tickets.load(tmp_path), second)
    assert left.keys() & first == {MANIFEST} and len(left) == len(own) + 1 + len(second)


def test_checkpoints_saved_as_tickets_where_they_are_stay(tickets, tmp_path):
    for ticket in tickets:
        safetensors.torch.save_file(ticket.state_dict, tmp_path / f"round-{ticket.round}.safetensors")
    before = content(tmp_path)
    made = Tickets.from_checkpoints(tmp_path)
    made.save(tmp_path)
    assert before.items() <= content(tmp_path).items() and same(Tickets.load(tmp_path), made)


def test_a_file_that_is_not_lpks_is_not_replaced_by_a_ticket(tmp_path):
    made = random_tickets(0)
    made.save(tmp_path / "elsewhere")
    names = [path.name for path in sorted((tmp_path / "elsewhere").glob("round-*"))]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / names[0]).write_bytes(b"mine")
    made.save(tmp_path / "here")
    assert (tmp_path / "here" / names[0]).read_bytes() == b"mine" and same(Tickets.load(tmp_path / "here"), made)
    (tmp_path / "support").mkdir()
    (tmp_path / "support" / MANIFEST).write_text('{"tickets": ["my printer is on fire"]}')
    before = content(tmp_path / "support")
    with pytest.raises(ValueError, match=r"tickets\.json .*; remove it, or use another directory"):
        made.save(tmp_path / "support")
    assert content(tmp_path / "support") == before


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "rewind.safetensors"])
def test_a_store_with_a_users_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} is of no run here.*use another directory"):
        lpk.imp(make_network(), sgd(*make_images(64, seed=1)), store=tmp_path, **OPTIONS)
    assert content(tmp_path) == {name: b"mine"}


# --- readers beside writers -------------------------------------------------------------------------------------------


def test_readers_beside_a_writer_see_the_old_tickets_or_the_new_ones(tmp_path):
    sets = [random_tickets(seed) for seed in (0, 1)]
    sets[1].save(tmp_path)
    ended = threading.Event()

    def write():
        while not ended.is_set():
            for each in sets:
                each.save(tmp_path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [any(same(read, each) for each in sets) for read in (Tickets.load(tmp_path) for _ in range(200))]
    finally:
        ended.set()
        writer.join()
    assert all(seen)


def test_a_ticket_that_is_missing_at_rest_is_named(tickets, tmp_path):
    tickets.save(tmp_path)
    next(tmp_path.glob("round-02-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"round-02-.* does not exist"):
        Tickets.load(tmp_path)


def test_two_writers_exclude_one_another(tickets, tmp_path):
    with directories.locked(tmp_path), pytest.raises(RuntimeError, match="in use by another"):
        tickets.save(tmp_path)
    tickets.save(tmp_path)


# --- a directory that is removed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_a_store_that_is_removed_while_it_is_used_is_not_made_again(tmp_path, again):
    store = tmp_path / "run"
    train = sgd(*make_images(64, seed=1))

    def removing(model, start, stop):
        if start == 1:
            shutil.rmtree(store)
            if again:
                store.mkdir()
        train(model, start, stop)

    with pytest.raises(OSError, match=r"cannot write .*run.*was removed or replaced"):
        lpk.imp(make_network(), removing, store=store, **OPTIONS)
    assert list(store.iterdir()) == [] if again else not store.exists()


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_the_lock_ends_with_imp_though_workers_live_on(tmp_path):
    images, labels = make_images(64, seed=1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, num_workers=1, persistent_workers=True)

    def train(model, start, stop):
        for x, y in loader:
            sgd(x, y)(model, 0, 1)

    first = lpk.imp(make_network(), train, store=tmp_path, **OPTIONS)
    assert loader._iterator is not None and all(worker.is_alive() for worker in loader._iterator._workers)
    assert same(lpk.imp(make_network(), train, store=tmp_path, **OPTIONS), first)
    loader._iterator._shutdown_workers()
