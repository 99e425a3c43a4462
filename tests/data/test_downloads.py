"""Downloads: by torchvision, from servers of this machine, and those that fail."""

import hashlib
import http.server
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torchvision

from lpk.data import sets as data
from tests.data.small_sets import IDX_FILES, load_fashion, write_cifar, write_idx


def test_without_a_network_a_download_fails_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    for name in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(data.DataNotFound) as error:
            data.load(name, validation=1, root=tmp_path / "empty")
        assert "torchvision's download: " in str(error.value).splitlines()[-1]
        assert "Name or service not known" in str(error.value)
    assert list((tmp_path / "xdg" / "lpk").iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_a_cache_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "xdg").write_text("a file, where a folder should be")
    with pytest.raises(data.DataNotFound, match=r"torchvision's download: .*xdg"):
        data.load("cifar10", validation=1)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder served by HTTP on this machine, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client may hang up before all was sent."""

    (tmp_path / "served").mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def archive(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 behind the address that torchvision downloads from."""
    folder, address = served
    write_cifar("cifar10", folder, monkeypatch)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "url", f"{address}/{path.name}")
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_a_download_lands_in_the_cache_folder(archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    incomplete = tmp_path / "xdg" / "lpk" / "cifar-10-batches-py"
    incomplete.mkdir(parents=True)
    (incomplete / "data_batch_2").write_bytes(b"a remainder")
    assert data.load("cifar10", validation=1).source == "torchvision's download"
    assert capfd.readouterr() == ("", "")
    archive.unlink()
    assert data.load("cifar10", validation=1).source == "the cache folder"
    assert [path.name for path in (tmp_path / "xdg" / "lpk").iterdir()] == ["cifar-10-batches-py"]


def test_what_killed_downloads_left_is_removed(archive: Path, tmp_path: Path) -> None:
    cache = tmp_path / "xdg" / "lpk"
    for name, age in ((".download-old", 100_000.0), (".download-new", 0.0), ("mine-old", 100_000.0)):
        (cache / name).mkdir(parents=True)
        (cache / name / "part").write_bytes(b"x")
        os.utime(cache / name, (time.time() - age,) * 2)
    data.load("cifar10", validation=1)
    assert {path.name for path in cache.iterdir()} >= {".download-new", "mine-old"}
    assert not (cache / ".download-old").exists()


def test_a_partial_download_is_removed(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(data.DataNotFound, match="download: File not found or corrupted"):
        data.load("cifar10", validation=1)
    assert list((tmp_path / "xdg" / "lpk").iterdir()) == []


def test_fashion_mnist_is_downloaded_too(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    write_idx(folder, 20, 5, packed=True)
    resources = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in IDX_FILES]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    loaded = data.load("fashion-mnist", validation=5)
    assert (loaded.source, len(loaded.train)) == ("torchvision's download", 15)
    assert load_fashion(validation=5).source == "the cache folder"


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        start = time.monotonic()
        with pytest.raises(data.DataNotFound, match="timed out"):
            data.load("cifar10", validation=1)
        assert time.monotonic() - start < 5  # a limit on waiting, no measure of speed
    assert socket.getdefaulttimeout() is None
