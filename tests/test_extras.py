"""What an install without extras can do, what it says of what is missing, and what a command imports."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lpk
from lpk.extras import EXTRAS
from tests.conftest import TINY_PRESET

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # else named as they are imported

# Commands in one process: importing PyTorch takes seconds each time.
ONE_BY_ONE = """
import shlex
from lpk.__main__ import main
def status(line):
    sys.argv = ["lpk", *shlex.split(line)]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
print([status(line) for line in sys.argv[1:]])
"""

WITHOUT = "import sys\nfor name in sys.argv[1].split(','): sys.modules[name] = None\nsys.argv[1:2] = []\n"

METHOD = """
import copy, torch, lpk
torch.manual_seed(0)
x, y = torch.randn(64, 6), torch.randint(3, (64,))
model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
def train(model, start, stop):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(start, stop):
        optimizer.zero_grad(); torch.nn.functional.cross_entropy(model(x), y).backward(); optimizer.step()
tickets = lpk.imp(model, train, rounds=2, epochs=3, progress=False)
pooled = lpk.pool(tickets, 2, model=model, validation=(x, y), calibration=x, progress=False)
assert lpk.sparsify(model, pooled)(x).shape == (64, 3)
assert lpk.ops.magnitude_mask(torch.arange(4.0), 2).sum() == 2
from lpk.data.feed import feed
from lpk.data.splits import MemorySplit
class Own:
    def __len__(self): return 64
    def loader(self, batch_size, **options): return zip(x.split(batch_size), y.split(batch_size))
for split in (Own(), MemorySplit(torch.zeros(64, 1, 6, 6, dtype=torch.uint8), y, (0.5,), (0.5,))):
    fed = feed(split, torch.device("cpu"), 32, augment=False)
    assert [len(fed.batch(*inputs)[1]) for inputs in fed.epoch(0)] == [32, 32]
print("done")
"""


def python(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_method_needs_no_extra():
    run = python(WITHOUT + METHOD, ",".join(EXTRAS))
    assert run.stdout == "done\n", run.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "line"),
    [
        ("typer", ["--help"], "lpk: the command `lpk` needs typer: pip install 'lpk[cli]'"),
        ("torchvision", ["demo", "run"], "lpk: lpk.data needs torchvision: pip install 'lpk[data]'"),
        ("matplotlib", ["report", "run"], "lpk: a report needs matplotlib: pip install 'lpk[cli]'"),
        (
            "sklearn",
            ["imp", "run", "--preset", "digits"],
            "lpk: the data set digits needs sklearn: pip install 'lpk[data]'",
        ),
    ],
)
def test_what_is_missing_is_one_line(missing, arguments, line, tmp_path):
    arguments = [str(tmp_path / "run") if argument == "run" else argument for argument in arguments]
    run = python(WITHOUT + "from lpk.__main__ import main\nmain()", missing, *arguments)
    assert run.returncode == 1 and run.stderr.splitlines() == [line]
    assert [path.name for path in tmp_path.glob("run/*")] in ([], [".lock"])


def test_what_writes_no_report_needs_no_matplotlib(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_PRESET.replace("rounds = 3", "rounds = 1"))
    run = str(tmp_path / "run")
    commands = (
        ["imp", run, "--preset", str(tmp_path / "tiny.toml"), "--quiet"],
        ["pool", run, "--target", "1", "--quiet"],
        ["eval", run, "--no-latency", "--quiet"],
        ["info", run],
        ["demo", f"{run}2"],  # these two need it, and say so before anything takes time
        ["run", "averages", "--out", f"{run}2"],
    )
    ended = python(WITHOUT + ONE_BY_ONE, "matplotlib", *map(shlex.join, commands))
    assert ended.stdout.splitlines()[-1:] == ["[0, 0, 0, 0, 1, 1]"], ended.stderr
    assert ended.stderr.count("a report needs matplotlib") == 2
    assert not (tmp_path / "run2").exists()


def test_extras_are_pyprojects():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(package, package) in extras[extra]
    assert extras["all"] == ["lpk[cli,timm,export]"] and "lpk[data]" in extras["cli"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pool", "--help"], ["run", "--help"]])
def test_help_waits_for_no_library(arguments):
    program = (
        "import sys\nfrom lpk.__main__ import main\ntry: main()\n"
        "finally: assert not {'torch', 'torchvision', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    run = python(program, *arguments)
    assert run.returncode == 0 and run.stdout and not run.stderr


def test_the_face_is_imported_when_it_is_used():
    run = python("import sys, lpk\nassert 'torch' not in sys.modules\nlpk.Recipe(1)\nassert 'torch' not in sys.modules")
    assert run.returncode == 0, run.stderr
    for name in lpk.__all__:
        assert getattr(lpk, name) is not None and name in dir(lpk)
    with pytest.raises(AttributeError, match="module 'lpk' has no attribute 'pol'"):
        _ = lpk.pol
