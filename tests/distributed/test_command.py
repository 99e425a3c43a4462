"""The command `lpk` as torchrun starts it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lpk import terminal
from lpk.distributed import launched
from lpk.tickets.pooled import Pooled
from lpk.tickets.tickets import Tickets
from tests.command import here, lpk
from tests.conftest import TINY_PRESET
from tests.same import same

LIMIT = 120.0  # seconds


def torchrun(count: int, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "lpk", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def rank_of(torchrun: subprocess.Popen, rank: int) -> int:
    """The process of a rank."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            own = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == torchrun.pid and b"RANK=%d" % rank in own:
            return int(path.name)
    raise LookupError(f"no process of rank {rank}")


@pytest.fixture
def preset(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_PRESET)
    return path


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the process of a rank is found in /proc")
def test_a_killed_rank_ends_the_run_which_goes_on_and_its_pools(preset, tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    imp = ("--preset", preset, "--seed", 4, "--threads", 1, "--quiet")

    process = torchrun(2, "imp", shared, *imp)
    stop = time.monotonic() + LIMIT
    while not any((shared / "tickets").glob("round-00-*")):
        assert time.monotonic() < stop and process.poll() is None
        time.sleep(0.01)
    killed = rank_of(process, 1)
    os.kill(killed, signal.SIGKILL)
    status, _, err = ended(process)
    assert status == 1 and f"rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: {killed})" in err
    kept = Tickets.load(shared)
    assert 1 <= len(kept) < 4

    status, out, err = ended(torchrun(2, "imp", shared, *imp))
    assert status == 0, err
    assert out == f"4 tickets, densities 100.0% to {Tickets.load(shared)[-1].density:.1%}, in {shared}/tickets\n"
    lpk("imp", alone, *imp)
    tickets, expected = Tickets.load(shared), Tickets.load(alone)
    assert same(Tickets(list(tickets)[: len(kept)]), kept)
    for one, other in zip(tickets, expected, strict=True):  # in float32, where roundings grow with every step
        assert one.keep == other.keep and int((one.mask != other.mask).sum()) <= 0.02 * one.keep
        both = one.mask & other.mask
        torch.testing.assert_close(one.flat.weights[both], other.flat.weights[both], rtol=0, atol=0.02)

    shutil.rmtree(alone)
    shutil.copytree(shared, alone)
    status, out, err = ended(torchrun(2, "pool", shared, "--threads", 1, "--quiet"))
    assert status == 0, err
    assert out == lpk("pool", alone, "--threads", 1, "--quiet")
    for round_ in range(4):
        one, other = (Pooled.load(p / f"pooled/interpolation/round-{round_:02d}.safetensors") for p in (shared, alone))
        assert all(torch.equal(tensor, other.state_dict[name]) for name, tensor in one.state_dict.items())
        assert (one.steps, one.accuracy, one.forward_samples) == (other.steps, other.accuracy, other.forward_samples)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_several_processes_do_not_share(rank, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": 2, "RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    status, _, err = here("eval", "run")
    assert status == 1
    said = "lpk: rank 0: `lpk eval` is one process's work; torchrun's several share that of `lpk imp`, `lpk pool`, `lpk"
    assert " ".join(err.split()).startswith(said) if rank == 0 else err == ""
    status, _, err = here("pool", "run", "--target", 1)
    assert status == 1 and (
        "`lpk pool --target` is one process's work" in " ".join(err.split()) if rank == 0 else not err
    )
    status, _, err = here("imp")
    assert status == 2 and bool(err) == (rank == 0)


@pytest.mark.parametrize(
    ("device", "problem"),
    [(None, "process 2 of this machine has no GPU, of which there are 1"), ("cuda:1", "leave the n")],
)
def test_processes_and_gpus(device, problem, monkeypatch):
    environment = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=problem), launched(device):
        pass


def test_the_number_of_a_process(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")  # of a machine's job, not of torchrun
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert terminal.rank() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert terminal.rank() == 3
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert terminal.rank() is None
