"""The examples, in a tiny setting."""

import importlib.util
import os
import subprocess
import sys
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


class Written:
    """Stands in for TensorBoard's SummaryWriter: the scalars by their tags, and the sizes of histograms."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars.setdefault(tag, []).append((step, value))

    def add_histogram(self, tag, values, step):
        self.histograms.setdefault(tag, []).append((step, len(values)))


CAPTURED = {"capture_output": True, "text": True, "timeout": 300}
SMALL = {"train": 200, "epochs": 3, "rounds": 2}


def test_tensorboard():
    written = Written()
    pools = load("tensorboard_hooks").run(written, **SMALL, progress=False)
    steps = {tag: [step for step, _ in points] for tag, points in written.scalars.items()}
    epochs = list(range(1, 8))  # three of the dense network, two of each other round
    assert steps["epoch/loss"] == steps["epoch/learning rate"] == steps["epoch/validation accuracy"] == epochs
    assert steps["round/density"] == steps["round/loss"] == steps["round/validation accuracy"] == [0, 1, 2]
    assert [size for _, size in written.histograms["round/remaining weights"]] == [pooled.keep for pooled in pools]
    for pooled in pools:
        assert written.scalars[f"pool/round {pooled.round}"][-1] == (2, pooled.accuracy)


def test_tensorboard_writes_its_files(tmp_path):
    """As it is called: a script's own folder comes first in Python's path, and must hold no `tensorboard`."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [str(tmp_path), *(f"--{name}={value}" for name, value in SMALL.items())]
    script = [sys.executable, str(EXAMPLES / "tensorboard_hooks.py"), *arguments]
    ran = subprocess.run(script, cwd=EXAMPLES.parent, env={**os.environ, "PYTHONPATH": "."}, **CAPTURED)
    assert ran.returncode == 0 and ran.stdout.count("Pooled(") == 3, ran.stderr
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert len(read.Scalars("epoch/loss")) == 7 and len(read.Scalars("pool/round 2")) == 2


def test_lightning(tmp_path, capsys):
    pytest.importorskip("lightning")
    example = load("lightning_imp")
    arguments = [str(tmp_path), *(f"--{name}={value}" for name, value in SMALL.items())]
    pooled = example.main(arguments)
    out = capsys.readouterr().out
    assert out.count("validation accuracy") == 3 and f"density {pooled.density:.3f}" in out
    assert [path.name for path in sorted(tmp_path.glob("logs/*"))] == [f"leg-{i:02d}" for i in range(4)]
    assert torch.equal(example.main(arguments).flat.weights, pooled.flat.weights), "it did not go on"
