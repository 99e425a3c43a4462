"""What a wheel holds, and what building one asks for."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lpk").glob("**/__init__.py")}
    assert set(listed) == there | {"lpk.kernels"}  # a link in the tree


def test_the_readme_links_into_the_repository_on_a_package_index():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--long-description"], cwd=ROOT, capture_output=True, text=True
    )
    root = re.escape(f"{project['urls']['Repository']}/")
    targets = re.findall(r"\]\(([^)#][^)]*)\)", run.stdout)
    assert len(targets) > 10 and "<this repository>" not in run.stdout, run.stderr
    inside = re.compile(rf"{root}(blob|raw)/v{re.escape(project['version'])}/([^#]+)(?:#.*)?")
    for target in targets:
        kind, path = inside.fullmatch(target).groups()
        assert (ROOT / path).exists() and (kind == "raw") == path.endswith(".svg")


def test_old_setuptools_are_told(tmp_path):
    """They fail on pyproject.toml, with a message that names something else."""
    command = tmp_path / "setuptools" / "command"
    command.mkdir(parents=True)
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'\nExtension = setup = None\n")
    (command / "__init__.py").touch()
    (command / "build_ext.py").write_text("build_ext = object\n")
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "needs setuptools 77" in run.stderr and "65.5.0" in run.stderr
