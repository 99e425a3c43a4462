"""The `lpk` command, in a process of its own and in this one: importing PyTorch takes seconds each time."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import pytest
import torch

from lpk.cli.main import main


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "lpk", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_a_process(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def here(*arguments: object) -> tuple[int, str, str]:
    """What the command does in this process: exit status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ["lpk", *map(str, arguments)]
    threads = torch.get_num_threads()
    try:
        with (
            mock.patch("sys.argv", arguments),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        torch.set_num_threads(threads)
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def lpk(*arguments: object) -> str:
    """The output of a command that succeeds in this process."""
    status, out, err = here(*arguments)
    assert status == 0, err
    return out


def error(*arguments: object) -> str:
    """The one line that a command fails with."""
    status, _, err = here(*arguments)
    assert status == 1 and len(err.strip().splitlines()) == 1, err
    return err
