"""The examples, in a tiny setting."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def transformer():
    return load("transformer")


def test_transformer(transformer, capsys):
    sizes = ["--excerpts", "60", "40", "40", "--epochs", "2", "--rounds", "2"]
    rows = transformer.main(["--libraries", "networkx", "numpy", *sizes])
    assert [round(density, 2) for density, _, _ in rows] == [1.0, 0.5, 0.25]
    assert all(0.0 <= accuracy <= 1.0 for row in rows for accuracy in row[1:])
    out = capsys.readouterr().out
    assert f"{rows[2][2]:.2%}" in out and "80 excerpts, 2 libraries" in out


def test_excerpts_of_the_splits_differ(transformer):
    sizes = (30, 20, 25)
    splits = transformer.load(("networkx", "numpy"), sizes, seed=0)
    words = [{tuple(row) for row in split["input_ids"].tolist()} for split in splits]
    for split, size in zip(splits, sizes, strict=True):
        assert torch.bincount(split["label"]).tolist() == [size, size]
        assert torch.equal(split["mask"], split["input_ids"] != 0) and bool(split["mask"].any(1).all())
    assert not words[0] & words[1] and not words[0] & words[2] and not words[1] & words[2]
    with pytest.raises(ValueError, match="networkx has too few docstrings"):
        transformer.load(("networkx",), (1_000_000,), seed=0)
