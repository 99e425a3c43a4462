"""lpk.tickets.directories: files are replaced whole or not at all, locks end with their use."""

import contextlib
import os
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from lpk import own
from lpk.tickets import directories, files
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from tests.command import error
from tests.conftest import random_tickets

# --- files ------------------------------------------------------------------------------------------------------------


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
            lambda: own.network(place / "closed", 1, "ticket"),
        ):
            with pytest.raises(PermissionError):
                read()
        assert f"{place / 'closed' / 'manifest.json'}: permission denied" in error("eval", place / "closed")
        with pytest.raises(PermissionError, match=r"cannot write .*new.json: Permission denied"):
            files.write_bytes(place / "new.json", b"")
