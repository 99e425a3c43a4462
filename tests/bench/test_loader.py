"""What bench.loader measures, keeps and shows, on a few small JPEGs. No time is looked at."""

import os

import pytest
import torch
from PIL import Image
from torchvision import transforms

from bench import loader
from bench.table import tables_of
from lpk.tickets import files
from tests.bench.command import command


@pytest.fixture
def few(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "SIZES", [(50, 40), (40, 50), (700, 600)])
    monkeypatch.setattr(loader, "BATCH_SIZE", 2)
    monkeypatch.setattr(loader, "TIMES", 1)


def test_all_parts(few, monkeypatch, tmp_path, capsys):
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    command(loader, monkeypatch, "--images", 5, "--cores", 1, "--results", tmp_path)
    assert torch.get_num_threads() == threads and os.sched_getaffinity(0) == cores
    (path,) = tmp_path.glob("loader-*.json")
    result = files.read_json(path)
    assert [row["contestant"] for row in result["training"]] == ["Pillow, reduced", "PyTorch's example", "lpk"]
    assert len(result["validation"]) == 4 and all(row["cores"] == 1 for row in result["validation"])
    kind, (text,) = tables_of(result)
    assert kind == "bench: loader" and "| validation | lpk, kept decoded | " in text
    assert "8,000 images a second (assumed for ResNet-18 on an H100, not measured) needs " in text
    assert text.partition("\n\nMeasured")[0] in capsys.readouterr().out
    command(loader, monkeypatch, "--images", 5, "--cores", 1, "--parts", "training", "--results", tmp_path,
            "--gpu-images-per-second", 123)  # fmt: skip
    assert "123 images a second (as given)" in loader.table(files.read_json(path))


def test_cores_are_what_the_gpu_takes_by_what_one_decodes():
    row = {"seed": 0, "cores": 4, "contestant": "lpk", "images_per_second": 2000.0, "date": ""}
    slow = row | {"cores": 1, "images_per_second": 700.0}
    result = {
        "training": [slow, row], "validation": [], "bytes": 110e3, "gpu_images_per_second": 7000, "assumed": True,
    }  # fmt: skip
    assert "needs 14 cores like these for decoding, of 500 images a second each, and reads 770 MB" in loader.table(
        result
    )
    assert loader.powers(6) == [1, 2, 4, 6] and loader.powers(1) == [1]


def test_a_reduced_crop_shows_what_torchvisions_does(tmp_path):
    """Up to what the other scale does: a smooth picture has the same pixels."""
    across = torch.linspace(0, 255, 1600)[None, :].expand(1200, 1600)
    transforms.ToPILImage()(torch.stack([across] * 3).to(torch.uint8)).save(tmp_path / "0.jpg", quality=95)
    opened, whole = (Image.open(tmp_path / "0.jpg") for _ in range(2))
    torch.manual_seed(1)
    reduced = transforms.PILToTensor()(loader.reduced_crop(opened)).int()
    torch.manual_seed(1)
    expected = transforms.PILToTensor()(transforms.RandomResizedCrop(224)(whole.convert("RGB"))).int()
    assert opened.size != whole.size and (reduced - expected).abs().max() <= 3
