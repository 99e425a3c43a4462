"""A process that has imported what any command does, and forks a child for each that it is told on standard input.

Started by tests/test_kills.py with the library made of tests/kills.cpp, which kills the child at a given call.
A line is JSON: `argv`, a command of lpk (or `save FROM TO`, which is Tickets.save); `root`, where calls are counted;
`at`, the call to be killed at, 0 for none; `torn`, whether a write is then half done. So is each answer: `status`,
negative for a signal; `calls`, a letter for each that was counted, w for a write; `err`, what the command printed.
"""

import ctypes
import importlib
import json
import os
import pkgutil
import sys
import tempfile
from typing import Any

import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo  # what the first optimizer imports

import lpk
from lpk.cli.main import main as command
from lpk.tickets.tickets import Tickets

# A command imports its modules when it runs, which would take each child two seconds.
for _module in pkgutil.walk_packages(lpk.__path__, "lpk."):
    if not _module.name.startswith(("lpk.kernels", "lpk.__main__")):
        importlib.import_module(_module.name)


def carry_out(argv: list[str]) -> int:
    if argv[0] == "save":
        Tickets.load(argv[1]).save(argv[2])
        return 0
    sys.argv = ["lpk", *argv]
    try:
        command()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def child(asked: dict[str, Any], library: ctypes.CDLL, err: int, counted: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(err, 2)
    torch.set_num_threads(1)
    library.kills_arm(asked["root"].encode(), asked["at"], asked["torn"])
    status = 70
    try:
        status = carry_out(asked["argv"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        calls = library.kills_made()
        library.kills_arm(b"", 0, 0)
        sys.stderr.flush()
        os.write(counted, calls)
        os._exit(status)


def main() -> None:
    library = ctypes.CDLL(None)
    library.kills_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    library.kills_made.restype = ctypes.c_char_p
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        with tempfile.TemporaryFile() as err:
            if (pid := os.fork()) == 0:
                child(asked, library, err.fileno(), write)
            os.close(write)
            with os.fdopen(read) as pipe:
                calls = pipe.read()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            err.seek(0)
            answer = {"status": status, "calls": calls, "err": err.read().decode()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
