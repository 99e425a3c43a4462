"""lpk.tickets.directories and what writes by it: nothing of others is written or removed, and locks end with it."""

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader, TensorDataset

import lpk
from lpk import presets, run
from lpk.experiments import demo
from lpk.experiments.study import Plan, Study
from lpk.pooling import search
from lpk.run import Run
from lpk.tickets import directories, files
from lpk.tickets.pooled import Pooled
from lpk.tickets.store import MANIFEST
from lpk.tickets.tickets import Tickets
from tests.command import error
from tests.conftest import TINY_PRESET, make_images, make_network, random_tickets, sgd
from tests.tickets.test_tickets import same

OPTIONS = {"epochs": 2, "rounds": 1, "rewind": 1, "seed": 0, "progress": False}


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> presets.Preset:
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY_PRESET)
    return presets.load(path)


@pytest.fixture
def pooled(tickets) -> Pooled:
    ticket = tickets[2]
    return Pooled(2, ticket.layout, ticket.flat, ticket.mask, 0.5, 0.5, (), 0, 0, 0.0, {})


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


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


def test_tickets_saved_among_pooled_networks(tickets, pooled, preset, tmp_path):
    with Run.create(tmp_path, preset, seed=4) as created:
        place = created.pooled_path("interpolation", 2)
        pooled.save(place)
        tickets.save(place.parent)
        found = created.pooled()
    assert list(found) == ["interpolation"] and [each.round for each in found["interpolation"]] == [2]
    assert torch.equal(found["interpolation"][0].flat.weights, pooled.flat.weights)


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


@pytest.mark.parametrize("name", ["results.json", "report.html", "accuracy.svg", "pooled", "pools", "tickets"])
def test_a_directory_with_a_users_results_becomes_no_run(preset, tmp_path, name):
    if name == "tickets":
        random_tickets(0).save(tmp_path / name)
    else:
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    with (
        pytest.raises(ValueError, match=f"holds {name} already; use another directory"),
        Run.create(tmp_path, preset, seed=4),
    ):
        pass
    assert content(tmp_path) == before and not (tmp_path / ".lock").exists()


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a device"), ("link", "a symbolic link"), ("folder", "a directory")):
        with pytest.raises(OSError, match=f"cannot write .*{name}: {kind} is there"):
            files.write_bytes(tmp_path / name, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"mine"


# --- a run keeps to its directory -------------------------------------------------------------------------------------

PARTS = ("tickets", "pooled", "pooled/swa", "pools", ".lock", "manifest.json", "results.json", "report.html")


@pytest.mark.parametrize("part", [*PARTS, "accuracy.svg"])
def test_a_run_with_a_link_in_it_is_refused_before_anything_is_written(preset, tmp_path, part):
    path, outside = tmp_path / "run", tmp_path / "outside"
    with Run.create(path, preset, seed=4):
        pass
    outside.mkdir()
    (outside / "round-best.safetensors").write_bytes(b"mine")
    place = path / part
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(outside / "file")
    place.symlink_to(outside / "file" if "." in part else outside)
    before = content(tmp_path)
    for opened in (Run.create(path, preset, seed=4), Run.open(path)):
        with pytest.raises(ValueError, match=f"{part} is a symbolic link"), opened:
            pass
    assert content(tmp_path) == before


def test_tickets_are_not_imported_through_a_link(tmp_path):
    for i, ticket in enumerate(random_tickets(0)):
        torch.save(ticket.state_dict, tmp_path / f"{i}.pt")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tickets").symlink_to(tmp_path / "outside")
    assert "tickets is a symbolic link" in error("import", *sorted(tmp_path.glob("*.pt")), tmp_path / "run")
    assert not list((tmp_path / "outside").iterdir())


def test_a_run_that_is_itself_a_link(preset, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with Run.create(tmp_path / "run", preset, seed=4) as created:
        assert created.path == tmp_path / "disk"
    assert (tmp_path / "disk" / "manifest.json").exists()


def test_a_run_stays_where_it_began(preset, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Run.create(Path("run"), preset, seed=4, root=Path("~/data")) as created:
        os.chdir("elsewhere")
        created.make_pooled_directory("swa")
        assert created.path == tmp_path / "run" and (tmp_path / "run" / "pooled" / "swa").is_dir()
        assert created.manifest["data_root"] == str(tmp_path / "home" / "data")
    made = random_tickets(0)
    made.save("~/runs/a")
    assert same(Tickets.load("~/runs/a"), made) and (tmp_path / "home" / "runs" / "a" / MANIFEST).exists()
    assert not list((tmp_path / "elsewhere").iterdir())


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


@pytest.mark.parametrize("removed", ["", "pooled", "pooled/swa"])
def test_a_run_that_is_removed_while_it_pools_is_not_made_again(
    preset, tickets, pooled, tmp_path, monkeypatch, removed
):
    path = tmp_path / "run"

    def pool(*_, **__):
        shutil.rmtree(path / removed)
        return pooled

    monkeypatch.setattr(search, "pool", pool)
    with (
        pytest.raises(OSError, match=r"cannot write .*round-02.*(gone|removed)"),
        Run.create(path, preset, seed=4) as created,
    ):
        demo.make_pools(created, tickets, method="swa", target=2)
    assert not (path / removed).exists()


# --- what killed processes leave --------------------------------------------------------------------------------------


def test_temporary_files_of_the_dead_are_swept_and_nothing_else(tmp_path):
    dead = tmp_path / ".lpk-0123456789abcdef.tmp"
    dead.write_bytes(b"half")
    kept = [tmp_path / name for name in (".lpk-notes.tmp", "lpk-0123456789abcdef.tmp", ".tickets.json.abcd1234")]
    for path in kept:
        path.write_bytes(b"mine")
    folder, link = tmp_path / ".lpk-0123456789abcde0.tmp", tmp_path / ".lpk-0123456789abcde1.tmp"
    folder.mkdir()
    link.symlink_to(kept[0])
    directory = os.open(tmp_path, os.O_RDONLY)
    living, descriptor = directories._temporary(directory)
    with directories.locked(tmp_path):
        pass
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {".lock", living, folder.name, link.name, *(path.name for path in kept)}
    os.close(descriptor)
    random_tickets(0).save(tmp_path)
    assert not (tmp_path / living).exists()
    os.close(directory)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a", b"content")
    assert not list(tmp_path.iterdir())


def test_modes_follow_the_umask_which_is_never_set(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda _: pytest.fail("the umask is the whole process's"))
            files.write_bytes(tmp_path / "a", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


# --- locks ------------------------------------------------------------------------------------------------------------


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


def test_a_forked_child_neither_holds_nor_ends_the_lock(tmp_path):
    (read, write), (ready, forked) = os.pipe(), os.pipe()
    with contextlib.ExitStack() as stack:
        stack.enter_context(directories.locked(tmp_path))
        if (leaving := os.fork()) == 0:
            stack.close()
            os._exit(0)
        if (living := os.fork()) == 0:
            os.close(write)
            os.write(forked, b".")
            os.read(read, 1)  # until the parent is done
            os._exit(0)
        assert os.waitpid(leaving, 0)[1] == 0
        with pytest.raises(RuntimeError, match="in use by another"), directories.locked(tmp_path):
            pass
    os.read(ready, 1)
    # as after a kill of the parent: what a child inherited is closed in it
    with directories.locked(tmp_path):
        held = [os.path.realpath(f"/proc/{living}/fd/{fd}") for fd in os.listdir(f"/proc/{living}/fd")]
    assert str(tmp_path / ".lock") not in held
    os.close(write)
    os.kill(living, signal.SIGKILL)
    os.waitpid(living, 0)
    for descriptor in (read, ready, forked):
        os.close(descriptor)


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), directories.locked(tmp_path):
        1 / 0  # noqa: B018
    with directories.locked(tmp_path), directories.locked(tmp_path / "tickets"):
        pass
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to(tmp_path / "created")
    with pytest.raises(ValueError, match="symbolic link"), directories.locked(tmp_path / "a"):
        pass
    assert not (tmp_path / "created").exists()


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def forbidding():
    """A directory, and a context in which this process is not root, whom nothing is forbidden."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)

    @contextlib.contextmanager
    def ordinary():
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)

    yield place, ordinary
    shutil.rmtree(place)


def test_a_missing_permission_is_called_so(forbidding, tickets):
    place, ordinary = forbidding
    tickets.save(place / "tickets")
    error("eval", place / "tickets")  # imports what is not imported yet
    next((place / "tickets").glob("round-02-*")).chmod(0)
    (place / "closed").mkdir(mode=0o700)
    files.write_bytes(place / "closed" / "net.safetensors", b"")
    (place / "closed").chmod(0)
    (place / "net.pt").touch(mode=0)
    (place / "net.safetensors").touch(mode=0)
    with ordinary():
        for read in (
            lambda: Tickets.load(place / "tickets"),
            lambda: Tickets.load(place / "closed"),
            lambda: Pooled.load(place / "closed" / "net.safetensors"),
            lambda: Pooled.load(place / "net.safetensors"),
            lambda: Tickets.from_checkpoints(place / "net.pt"),
            lambda: Tickets.from_checkpoints(place / "net.safetensors"),
            lambda: run.network(place / "closed", 1, "ticket"),
        ):
            with pytest.raises(PermissionError):
                read()
        assert f"{place / 'closed' / 'manifest.json'}: permission denied" in error("eval", place / "closed")
        with pytest.raises(PermissionError, match=r"cannot write .*new.json: Permission denied"):
            files.write_bytes(place / "new.json", b"")


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_study_keeps_to_its_directory_and_leaves_a_users_files(preset, tmp_path):
    def measure(out):
        return Study(out, preset, (0,)).measure("dense", Plan([], measure=lambda: {}, show=lambda _: None))

    measure(tmp_path / "study")
    (tmp_path / "outside").mkdir()
    (tmp_path / "study" / "dense" / "parts").rmdir()
    (tmp_path / "study" / "dense" / "parts").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="parts is a symbolic link"):
        measure(tmp_path / "study")
    for name, message in (("report.html", "holds report.html"), ("dense/results.json", "dense holds results.json")):
        out = tmp_path / name.partition(".")[0].replace("/", "-")
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(ValueError, match=f"{message} already, and no experiment; use another directory"):
            measure(out)
        assert content(out) == {name: b"mine"}
