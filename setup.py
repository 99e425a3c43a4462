"""Builds the extensions with CMake and Ninja: lpk._core, and lpk._plain where PyTorch is installed, for its version.

Environment: LPK_CUDA=0/1 leaves the CUDA kernels out or insists on them (default: where nvcc is found),
LPK_CUDA_ARCHS picks GPU architectures ("80;90"), LPK_WERROR=1 makes warnings errors, LPK_SANITIZE names a sanitizer.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SETUPTOOLS = 77  # the oldest that reads pyproject.toml

if int(setuptools.__version__.partition(".")[0]) < SETUPTOOLS:
    sys.exit(
        f"lpk needs setuptools {SETUPTOOLS} or newer, and this Python has {setuptools.__version__}.\n"
        "Run `python -m pip install --upgrade setuptools`, or `pip install .`, which brings its own."
    )


def description() -> str:
    """README.md as a package index shows it: its links lead into the repository, at the tag of this version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address, tag = project["urls"]["Repository"], f"v{project['version']}"

    def absolute(link: re.Match[str]) -> str:
        image, text, path = link.groups()
        return f"{image}[{text}]({address}/{'raw' if image else 'blob'}/{tag}/{path})"

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("<this repository>", address)
    relative = r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)"
    return re.sub(relative, absolute, text)


def find_nvcc() -> str | None:
    """The CUDA compiler: on PATH, or where CUDA_HOME or CUDA_PATH say."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") or next((n for h in homes if h and (n := shutil.which("nvcc", path=f"{h}/bin"))), None)


def cuda_options() -> list[str]:
    wish = os.environ.get("LPK_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"LPK_CUDA must be 0 or 1, not {wish!r}")
    nvcc = None if wish == "0" else find_nvcc()
    if wish == "1" and nvcc is None:
        sys.exit("LPK_CUDA=1, but nvcc was not found on PATH, in CUDA_HOME or in CUDA_PATH")
    if nvcc is None:
        return ["-DLPK_CUDA=OFF"]
    archs = os.environ.get("LPK_CUDA_ARCHS", "80;90").replace(",", ";").replace(" ", ";")
    return ["-DLPK_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DLPK_CUDA_ARCHS={archs}"]


def torch_options() -> list[str]:
    """The PyTorch that lpk._plain is compiled for. Without one, it is left out."""
    found = None if os.environ.get("LPK_SANITIZE") else importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ["-DLPK_TORCH="]
    folder = Path(found.origin).parent
    return [f"-DLPK_TORCH={folder}", f"-DLPK_TORCH_VERSION={runpy.run_path(str(folder / 'version.py'))['__version__']}"]


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        name = ext.name.rpartition(".")[2]
        torch = torch_options()
        if name == "_plain" and len(torch) == 1:
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{os.environ.get('LPK_SANITIZE') or 'release'}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'out'}",
            f"-DLPK_WERROR={'ON' if os.environ.get('LPK_WERROR') == '1' else 'OFF'}",
            f"-DLPK_SANITIZE={os.environ.get('LPK_SANITIZE', '')}",
            *cuda_options(),
            *torch,
        ]  # fmt: skip
        cache = build / "CMakeCache.txt"
        if cache.exists() and not self.same_tools(cache):
            shutil.rmtree(build)  # pip builds in a new environment each time: its paths are gone
        make = ["cmake", "--build", str(build), "--target"]
        if name == "_core":
            subprocess.run(configure, check=True)
            # Both at once, so that no processor waits. lpk._plain may not compile with another version's classes.
            subprocess.run([*make, "all", "--", "-k", "0"], check=False)
        complete = subprocess.run([*make, name], check=name == "_core")
        built = next((build / "out").glob(f"{name}*"), None)
        if complete.returncode != 0 or built is None:
            print("lpk._plain was not built; lpk works without it, and a call takes some microseconds more")
            return
        temporary = target.with_name(target.name + ".new")
        shutil.copy2(built, temporary)
        temporary.replace(target)

    @staticmethod
    def same_tools(cache: Path) -> bool:
        """Whether every tool that the CMake cache names is still there."""
        named = (line.partition("=")[2] for line in cache.read_text().splitlines() if ":FILEPATH=/" in line)
        return all(Path(path).exists() for path in named)


EXTENSIONS = [Extension("lpk._core", sources=[]), Extension("lpk._plain", sources=[], optional=True)]

setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": CMakeBuild},
    long_description=description(),
    long_description_content_type="text/markdown",
)
