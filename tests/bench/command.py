"""A command of bench in this process, and the machine that its results are of."""

import sys

MACHINE = {
    "processor": "Imagined 9000",
    "instruction_set": "avx2",
    "threads": 4,
    "memory": "8 GiB",
    "gpu": None,
    "torch": "2.0",
    "lpk": "0.1.0",
}


def command(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()
