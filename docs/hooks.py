"""MkDocs hooks.

Fences called `math` (LaTeX, which GitHub shows too) become MathML, so that pages load no script. The repository's
address comes from where it stands, pyproject.toml.
"""

import tomllib
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> None:
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: convert(source, display="block")}
    config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", []).append(fence)
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text(encoding="utf-8"))
    config.repo_url = project["project"]["urls"]["Repository"]
    config.repo_name = "Repository"
