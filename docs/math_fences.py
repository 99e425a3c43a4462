"""MkDocs hook: fences called `math` (LaTeX, which GitHub shows too) become MathML, so that pages load no script."""

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> None:
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: convert(source, display="block")}
    config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", []).append(fence)
