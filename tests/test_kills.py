"""A kill at any system call that changes a file loses nothing: the same command again ends as if there were none.

Every command is killed before each such call in turn, and in the middle of each write, which covers every state that a
file system can be left in by the process alone. In each of them what was there before is still there, as it was or as
the command leaves it; every other command works or fails with one line; and the same command again ends with the same
files as without the kill, and no others. A few of the calls are taken here, all of them with LPK_KILL_TESTS=1,
which prints how many.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors
import torch

from lpk import models
from lpk.tickets import files
from lpk.tickets.tickets import Tickets

HERE = Path(__file__).parent
ALL = os.environ.get("LPK_KILL_TESTS") == "1"
FEW = 2  # calls of each command where not all are taken

PRESET = """
[data]
name = "digits"
validation = 60
train = 100
augment = false

[model]
name = "small-resnet"
widths = [4]

[train]
epochs = 2
batch_size = 50
lr = 0.1
momentum = 0.9
weight_decay = 1e-4
milestones = []
gamma = 0.1
warmup = 0

[imp]
rounds = 2
fraction = 0.3
rewind = 1
prunable = "convolutions"

[pool]
calibration = 50
batch_size = 50
"""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a library is loaded before the C library of Linux"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


class Answer(NamedTuple):
    status: int
    calls: str
    err: str


class Commands:
    """The process of tests/killed_commands.py."""

    def __init__(self, library: Path) -> None:
        settings = {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "killed_commands.py"],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, argv: Sequence[object], root: Path, at: int = 0, torn: bool = False) -> Answer:
        asked = {"argv": list(map(str, argv)), "root": str(root), "at": at, "torn": torn}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def well(self, argv: Sequence[object], root: Path) -> str:
        """The calls of a command that succeeds, a letter each, w for a write."""
        answer = self(argv, root)
        assert answer.status == 0, answer.err
        return answer.calls

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Iterator[Commands]:
    library = tmp_path_factory.mktemp("library") / "kills.so"
    subprocess.run(
        ["g++", "-O1", "-shared", "-fPIC", "-std=c++17", "-o", library, HERE / "kills.cpp", "-ldl"], check=True
    )
    started = Commands(library)
    yield started
    started.close()


@pytest.fixture(scope="module")
def prepared(commands, tmp_path_factory) -> Path:
    """What commands begin with: presets, a finished run, one with fewer rounds, one that is pooled, checkpoints."""
    here = tmp_path_factory.mktemp("prepared")
    (here / "tiny.toml").write_text(PRESET)
    (here / "fewer.toml").write_text(PRESET.replace("rounds = 2", "rounds = 1"))
    options = ("--seed", 4, "--threads", 1, "--quiet")
    commands.well(("imp", here / "fewer", "--preset", here / "fewer.toml", *options), here)
    shutil.copytree(here / "fewer", here / "imp")
    commands.well(("imp", here / "imp", "--preset", here / "tiny.toml", *options), here)
    shutil.copytree(here / "imp", here / "pooled")
    for method in ("interpolation", "swa"):
        commands.well(("pool", here / "pooled", "--method", method, "--candidates", 1, "--threads", 1, "--quiet"), here)
    commands.well(("eval", here / "pooled", "--threads", 1, "--no-latency", "--quiet"), here)
    commands.well(("report", here / "pooled"), here)
    (here / "theirs").mkdir()
    model = models.build("small-resnet", classes=10, shape=(1, 8, 8), widths=(4,))
    for ticket in Tickets.load(here / "imp"):
        model.load_state_dict(ticket.state_dict)
        torch.save(model.state_dict(), here / "theirs" / f"{ticket.round}.pt")
    shutil.copytree(here / "imp" / "tickets", here / "others")
    Tickets.load(here / "imp")[1:].save(here / "fewer-tickets")
    return here


# name: the command, and what is in its directory RUN before; HERE is where all of that was prepared.
COMMANDS: dict[str, tuple[str, str | None]] = {
    "imp": ("imp RUN --preset HERE/tiny.toml --seed 4 --threads 1 --quiet", None),
    "imp, more rounds": ("imp RUN --preset HERE/tiny.toml --seed 4 --threads 1 --quiet", "fewer"),
    "import": ("import HERE/theirs RUN", None),
    "import --preset": ("import HERE/theirs RUN --preset HERE/tiny.toml --seed 4", None),
    "pool": ("pool RUN --threads 1 --quiet", "imp"),
    "pool, again": ("pool RUN --threads 1 --quiet", "pooled"),
    "eval": ("eval RUN --threads 1 --no-latency --quiet", "pooled"),
    "report": ("report RUN", "pooled"),
    "export": ("export HERE/imp RUN/net --target 1 --method ticket --force", None),
    "demo": ("demo RUN --preset HERE/tiny.toml --seed 4 --threads 1 --no-latency --quiet", None),
    "run": ("run disagreement --preset HERE/tiny.toml --seeds 1 --out RUN --threads 1 --quiet", None),
    "run, pools": ("run dense --preset HERE/tiny.toml --seeds 1 --out RUN --threads 1 --quiet", None),
    "Tickets.save": ("save HERE/fewer-tickets RUN", "others"),
}
OTHERS = ("eval RUN --quiet", "report RUN", "pool RUN --target 1 --quiet", "export RUN RUN/net --target 1")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_any_call_loses_nothing(name, commands, prepared, tmp_path, capsys):
    words, start = COMMANDS[name]
    argv = words.replace("HERE", str(prepared)).replace("RUN", str(tmp_path / "run")).split()
    run = tmp_path / "run"
    before = begin(run, prepared, start)
    calls = commands.well(argv, run)
    after = content(run)
    points = [(at, torn) for at, call in enumerate(calls, 1) for torn in ((False, True) if call == "w" else (False,))]
    killed = 0
    for at, torn in points if ALL else random.Random(name).sample(points, FEW):
        begin(run, prepared, start)
        answer = commands(argv, run, at, torn)
        assert answer.status == -signal.SIGKILL, f"call {at}: {answer}"
        killed += 1
        left = content(run)
        for path, was in before.items():
            assert is_kept(path, was, left.get(path), after.get(path)), f"call {at}: {path} is lost"
        if ALL and name.startswith(("imp", "pool", "demo")):
            others_work_or_say_why(commands, run, tmp_path / "copy", at)
        answer = commands(argv, run)
        finished = name.startswith("import") and "holds tickets already" in answer.err  # it was killed behind its work
        assert answer.status == 0 or finished, f"call {at}: {answer.err}"
        found = content(run)
        assert found.keys() == after.keys(), f"call {at}: {found.keys() ^ after.keys()}"
        assert [path for path in after if found[path] != after[path]] == [], f"call {at}"
    if ALL:
        with capsys.disabled():
            print(f"\n{name}: {len(calls)} calls, {killed} kills")


def begin(run: Path, prepared: Path, start: str | None) -> dict[str, Any]:
    shutil.rmtree(run, ignore_errors=True)
    if start is not None:
        shutil.copytree(prepared / start, run)
    return content(run)


def is_kept(path: str, was: Any, left: Any, after: Any) -> bool:
    """Whether a file is as it was or as it will be; a list of tickets may be on its way."""
    if Path(path).name == "tickets.json" and left is not None and left != after:
        count = len(was["tickets"])
        return left["layout"] == was["layout"] and left["tickets"][:count] == was["tickets"]
    return left in (was, after)


def others_work_or_say_why(commands: Commands, run: Path, copy: Path, at: int) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    if run.exists():
        shutil.copytree(run, copy)
    for words in OTHERS:
        answer = commands(words.replace("RUN", str(copy)).split(), copy)
        lines = answer.err.strip().splitlines()
        why = answer.status == 1 and len(lines) == 1 and lines[0].startswith("lpk: ")
        assert answer.status == 0 or why, f"call {at}, then {words}: {answer}"


def content(run: Path) -> dict[str, Any]:
    """What is in each file, times left out, by its path."""
    return {str(path.relative_to(run)): _content(path) for path in sorted(run.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    match path.suffix:
        case ".json":
            read = files.read_json(path)  # without its digest, which covers times
            read.pop("replaced", None)  # files that may be gone already
            return _timeless(read)
        case ".html" | ".svg":  # they show times, and matplotlib names things at random
            text = path.read_text().rstrip()
            assert text.endswith(f"</{path.suffix[1:]}>"), f"{path} is cut off"
            return True
        case ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
                metadata = json.loads(file.metadata()["lpk"]) if file.metadata() else {}
                metadata.pop("digest", None)  # it may cover times
                return tensors, _timeless(metadata)
    return re.sub(rb"\d+\.\d+ s", b"", path.read_bytes())


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _timeless(v) for k, v in tree.items() if k not in ("seconds", "created")}
    return [_timeless(part) for part in tree] if isinstance(tree, list) else tree
