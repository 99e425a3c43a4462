"""Packages that an install of lpk may lack, and the extra that brings each one."""

from importlib.util import find_spec

EXTRAS = {  # as in pyproject.toml
    "torchvision": "data",
    "PIL": "data",
    "sklearn": "data",
    "typer": "cli",
    "matplotlib": "cli",
    "timm": "timm",
    "onnx": "export",
    "onnxscript": "export",
}


def need(what: str, *packages: str) -> None:
    """Raises ImportError where one of these packages is not installed: one line that names the extra.

    Args:
        what: needs them, in words.
        packages: by the names that they are imported by.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ImportError(f"{what} needs {package}: pip install 'lpk[{EXTRAS[package]}]'", name=package)
