"""Functions of a user's own that the command line is told by name: `module:function`, or `file.py:function`."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lpk import choices

T = TypeVar("T")

FORM = "module:function or file.py:function"


def call(reference: str, option: str) -> Any:
    """What the function returns, called without arguments.

    Modules are looked for in the working directory, too, and a file's in its own. A file is loaded once.

    Args:
        option: which option of the command names it, for errors.

    Raises ValueError or ImportError, on one line, whatever the user's code raised.
    """
    where, _, name = reference.rpartition(":")
    if not (where and name):
        raise ValueError(f"{option} is {reference!r}; {FORM} is needed")
    module = _file(Path(where).expanduser(), option) if where.endswith(".py") else _module(where, option)
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_")]
        what = "has no function" if function is None else "holds no function under the name"
        raise ValueError(f"{option}: {where} {what} {name!r}{choices.suggestion(name, known)}")
    return _guarded(f"{option} {reference}", function)


def _module(name: str, option: str) -> ModuleType:
    _look_in(Path.cwd())

    def load() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # what it imports is missing
            raise ImportError(
                f"{option}: there is no module {error.name!r}, neither in {os.getcwd()} nor installed; {FORM} is needed"
                f"{choices.suggestion(error.name, _modules(error.name))}"
            ) from error

    return _guarded(f"{option} {name}", load)


def _file(path: Path, option: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        beside = [each.name for each in _sources(path.parent)]
        raise FileNotFoundError(f"{option}: {path} does not exist{choices.suggestion(path.name, beside)}")
    for module in list(sys.modules.values()):
        if getattr(module, "__spec__", None) and module.__spec__ and module.__spec__.origin == str(path):
            return module
    _look_in(path.parent)
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def load() -> ModuleType:
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _guarded(f"{option} {path.name}", load)


def _modules(like: str) -> list[str]:
    """The modules where the one of this name was looked for: installed beside the working directory's own."""
    package, _, _ = like.rpartition(".")
    folders = getattr(sys.modules.get(package), "__path__", None) if package else [os.getcwd()]
    found = [each.name for each in pkgutil.iter_modules(folders)]
    return [f"{package}.{name}" for name in found] if package else found


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py")) if folder.is_dir() else []


def completions(incomplete: str) -> list[str]:
    """What the shell may put in the place of this beginning: `module:function` of the working directory's files.

    They are parsed, and not run.
    """
    found = []
    for file in _sources(Path.cwd()):
        where = file.name if "." in incomplete else file.stem
        if f"{where}:".startswith(incomplete) or incomplete.startswith(f"{where}:"):
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                body = ast.parse(file.read_bytes()).body
                names = [each.name for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)]
                found += [f"{where}:{name}" for name in names if not name.startswith("_")]
    return [each for each in found if each.startswith(incomplete)]


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _guarded(what: str, function: Callable[[], T]) -> T:
    """What it returns; an error is one line that says where in the user's code it was raised."""
    try:
        return function()
    except ImportError as error:
        if error.__cause__ is not None and isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise _told(what, error) from error
    except (Exception, SystemExit) as error:
        raise _told(what, error) from error


def _told(what: str, error: BaseException) -> ValueError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    reason = next((line for line in str(error).splitlines() if line.strip()), "")
    return ValueError(f"{what}: {type(error).__name__}{f': {reason}' if reason else ''}{where}")
