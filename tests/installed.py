"""Whether an installed lpk works: tests/dist.sh runs a copy of this in an empty directory and a fresh environment."""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import torch

import lpk
import lpk.kernels

assert Path(lpk.__file__).is_relative_to(sys.prefix), lpk.__file__
assert lpk.__version__ != "0.1.0+inplace" and (Path(lpk.__file__).parent / "py.typed").exists()
assert "](http" in metadata("lpk")["Description"] and not re.search(r"\]\(\w+[./]", metadata("lpk")["Description"])

torch.manual_seed(0)
images, labels = torch.randn(256, 1, 8, 8), torch.randint(4, (256,))
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1),
    torch.nn.BatchNorm2d(16),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(1024, 4),
)


def train(model, start, stop):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(start, stop):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


tickets = lpk.imp(model, train, rounds=3, epochs=2, progress=False)
pooled = lpk.pool(tickets, 3, model=model, validation=(images, labels), calibration=images, progress=False)
fast = lpk.sparsify(model, pooled)
model.load_state_dict(pooled.state_dict)
with torch.no_grad():
    torch.testing.assert_close(fast(images), model.eval()(images), rtol=1e-4, atol=1e-5)
runtimes = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
assert len({Path(name).resolve() for name in runtimes if "scikit" not in name}) == 1, runtimes

text = (Path(lpk.presets.__file__).parent / "digits.toml").read_text()
for line, shorter in (
    ("rounds = 5", "rounds = 1"),
    ("\nepochs = 8", "\nepochs = 2"),
    ("milestones = [4, 6]", "milestones = [1]"),
):
    assert line in text
    text = text.replace(line, shorter)
Path("tiny.toml").write_text(text)
subprocess.run(["lpk", "demo", "run", "--preset", "tiny.toml", "--quiet"], check=True, stdout=subprocess.DEVNULL)
assert Path("run/report.html").stat().st_size > 10_000
