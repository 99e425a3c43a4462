"""What bench.train measures, keeps and shows, on a tiny network and few samples. No time is looked at."""

from types import SimpleNamespace

import pytest
import torch

from bench import train
from lpk.data.splits import MemorySplit
from lpk.tickets import files
from tests.bench.command import command
from tests.conftest import make_images


def split(count, seed):
    images, labels = make_images(count, seed=seed)
    small = ((images - images.min()) / (images.max() - images.min()) * 255).to(torch.uint8)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[..., : small.shape[2], : small.shape[3]] = small
    return MemorySplit(images, labels, (0.5,), (0.2,))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(
        train.data, "load", lambda name, validation, train: SimpleNamespace(train=split(train, 1), test=split(50, 2))
    )
    monkeypatch.setattr(train, "STEPS", 1)
    monkeypatch.setattr(train, "TIMES", 3)
    monkeypatch.setattr(train, "TURNS", 2)


def test_all_parts(few, monkeypatch, tmp_path, capsys):
    arguments = ("--network", "mlp", "--train", 300, "--device", "cpu", "--epochs", 3, "--results", tmp_path)
    monkeypatch.setattr(train, "convolutions", lambda model: {"1.weight", "3.weight"})  # an mlp has none
    command(train, monkeypatch, *arguments, "--seeds", 0, 1, "--plain")
    (path,) = tmp_path.glob("train-*.json")
    result = files.read_json(path)
    assert [len(result[part]) for part in train.PARTS] == [6, 4, 2, 2]
    rows = {(r["seed"], r["dtype"], r["contestant"]): r for r in result["training"]}
    for seed in (0, 1):  # the same batches and arithmetic
        ours, plain = (rows[seed, "float32", contestant] for contestant in ("lpk.Trainer", "plain PyTorch"))
        assert ours["accuracy"] == plain["accuracy"]
    said = capsys.readouterr().out
    assert "lpk.Trainer in bfloat16, 2 seeds: " in said and "| plain PyTorch | float32 | 1 |" in said
    assert "| float32 | 2 |" in said.partition("a plain step")[2]

    command(train, monkeypatch, *arguments, "--seeds", 2, "--parts", "training", "--dtypes", "float32")
    assert len(files.read_json(path)["training"]) == 7 and len(files.read_json(path)["masking"]) == 2


def test_images_a_second_are_those_of_the_median():
    found = train.row("float32", "lpk.Trainer", 100, [1.0, 2.0, 4.0], seed=3)
    assert (found["images_per_second"], found["slowest"], found["fastest"], found["seed"]) == (50, 25, 100, 3)


def test_only_lpk_is_asked_for_something():
    of = {"dtype": "bfloat16"}
    assert train.asked(of | {"contestant": "lpk.imp"}) == train.asked(of | {"contestant": "lpk.Trainer"}) == "30,000"
    assert train.asked(of | {"contestant": "plain PyTorch"}) == ""
