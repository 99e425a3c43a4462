"""A rehearsal of ImageNet: its layout, its kinds of files and its own preset, made small where time asks for it."""

import json
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpk import presets
from lpk.tickets.tickets import Tickets
from tests.command import lpk

PRESET = "imagenet-resnet18"
SMALL = {
    "data": {"validation": 2},
    "train": {"epochs": 2, "batch_size": 5, "milestones": [1], "warmup": 1},
    "imp": {"rounds": 1, "rewind": 1},
    "pool": {"calibration": 2, "batch_size": 4},
}


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """The shipped one, so that what it says of anything else is what is tried."""
    table = tomllib.loads(resources.files(presets).joinpath(f"{PRESET}.toml").read_text())
    for section, values in SMALL.items():
        assert {*values} <= {*table[section]}
        table[section] |= values
    lines = [
        line
        for section, values in table.items()
        for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    ]
    path = tmp_path / f"{PRESET}.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes; files of every kind that ImageNet has, all named .JPEG."""
    random = np.random.default_rng(0)
    kinds = [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG")]
    for part, count in (("train", 4), ("val", 2)):
        for label in ("n01440764", "n01443537", "n01484850"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number, (mode, form) in enumerate(kinds[-count:]):
                blocks = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                picture = Image.fromarray(np.kron(blocks, np.ones((50, 50, 1), np.uint8)))
                picture.convert(mode).save(folder / f"{label}_{number}.JPEG", form)
    return tmp_path / "images"


@pytest.mark.filterwarnings("ignore:validation scores every network")  # of two samples
def test_from_the_folders_to_test_scores(images, preset, tmp_path, monkeypatch):
    """Trained by two ranks, pooled and evaluated by one process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LPK_DATA", str(images))
    run, torchrun = tmp_path / "run", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    imp = [sys.executable, "-m", *torchrun, "-m", "lpk", "imp", str(run), "--preset", str(preset), "--quiet"]
    done = subprocess.run(imp, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tickets = Tickets.load(run)
    assert [round(ticket.density, 2) for ticket in tickets] == [1.0, 0.8]
    (kept,) = (tmp_path / "cache" / "lpk" / "decoded").glob("*.npy")  # the validation samples, shown after each epoch
    made = kept.stat()
    lpk("pool", run, "--target", 1, "--quiet")
    assert len(list((run / "pooled" / "interpolation").glob("round-*.safetensors"))) == 1
    lpk("eval", run, "--quiet", "--no-latency")
    results = json.loads((run / "results.json").read_text())
    assert results["manifest"]["samples"] == {"train": 10, "validation": 2, "calibration": 2, "test": 6}
    scores = [row["ticket"] for row in results["rows"]]
    scores.append(results["rows"][1]["pools"]["interpolation"]["accuracy"])
    assert all(6 * score == pytest.approx(round(6 * score)) for score in scores)
    again = kept.stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # nothing was decoded twice
    assert len(list(kept.parent.glob("*.npy"))) == 2  # and the test samples
