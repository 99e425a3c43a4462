"""What type checkers see: the README's code, pool's overloads, and an editable install."""

import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lpk.pooling.pool import Options, pool

ROOT = Path(__file__).parents[1]

GIVEN = """
from torch import Tensor, nn
import lpk

images: Tensor
model = nn.Linear(2, 2)
"""
ASKED = """
def asked(some: int | None) -> None:
    reveal_type(lpk.pool("run", 3, model=model))
    reveal_type(lpk.pool("run", model=model, method="swa"))
    reveal_type(lpk.pool("run", some, model=model))
    reveal_type(lpk.data.load)
    reveal_type(lpk.evaluate(model, [lpk.Tickets.load("run")[0], model.state_dict()], (images, images)))
    reveal_type(lpk.evaluate(model, lpk.Tickets.load("run"), metric=lambda network: 0.5))
    reveal_type(lpk.evaluate(model, model.state_dict(), (images, images)))
    lpk.pool("run", model=model, methd="swa")  # refused
    lpk.pool("run", 3)  # refused
"""


def test_the_readme_passes_mypy_strict(tmp_path, pytestconfig):
    pytest.importorskip("mypy")
    code = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    (tmp_path / "readme.py").write_text("\n".join(code))
    asked = GIVEN + ASKED
    (tmp_path / "asked.py").write_text(asked)
    settings = f"[mypy]\nmypy_path = {ROOT}\nuntyped_calls_exclude = torch\n"  # backward()
    settings += "[mypy-sklearn.*]\nignore_missing_imports = True\n"  # it has no types
    (tmp_path / "mypy.ini").write_text(settings)
    options = [
        "--strict",
        "--config-file=mypy.ini",
        f"--cache-dir={pytestconfig.cache.mkdir('mypy')}",
    ]  # PyTorch takes 15 seconds
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "readme.py", "asked.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    refused = [i for i, line in enumerate(asked.splitlines(), 1) if line.endswith("# refused")]
    errors = re.findall(r"^(\S+?):(\d+): error: ", run.stdout, re.MULTILINE)
    assert {*errors} == {("asked.py", str(line)) for line in refused}, run.stdout + run.stderr
    pooled = "lpk.tickets.pooled.Pooled"
    revealed = re.findall(r'Revealed type is "(.*)"', run.stdout)
    assert revealed[:3] == [pooled, f"list[{pooled}]", f"{pooled} | list[{pooled}]"]
    assert revealed[3].startswith("def (name: str")
    evaluation = "lpk.pooling.accuracy.Evaluation"
    assert revealed[4:] == [f"list[{evaluation}]", f"list[{evaluation}]", evaluation]


def test_the_overloads_have_every_option_of_pool():
    options = [p.name for p in inspect.signature(pool).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert options == list(Options.__annotations__)


def test_an_editable_install_is_a_path(tmp_path):
    """Type checkers read paths; they do not run the import hook that setuptools writes where it may choose."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("lpk", "kernels", "README.md", "LICENSE", "pyproject.toml"):
        (source / name).symlink_to(ROOT / name)
    without = "from setuptools import setup\nsetup(long_description='')\n"
    (source / "setup.py").write_text(without)  # the extension
    build = "import setuptools.build_meta as build, sys; build.build_editable(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        (path,) = (name for name in content.namelist() if not name.startswith("lpk-"))
        assert path.endswith(".pth") and content.read(path).decode().split() == [str(source)], run.stderr
