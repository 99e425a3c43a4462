"""The README's training loop, and what comes after it, run as they stand there."""

import re
import textwrap
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import make_images, make_network

README = Path(__file__).parents[1] / "README.md"


def test_training_loop_of_the_readme(tmp_path, monkeypatch):
    loop, *others = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(loop.splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    names = {
        "MyNetwork": make_network,
        "train_loader": DataLoader(TensorDataset(*make_images(64, seed=1)), batch_size=32),
        "val_loader": DataLoader(TensorDataset(*make_images(50, seed=2)), batch_size=32),
        "calibration_loader": DataLoader(TensorDataset(*make_images(250, seed=3)), batch_size=125),
        "images": make_images(20, seed=4)[0],
    }
    for code in (loop.replace("epochs=20", "epochs=2"), *others):
        exec(compile(textwrap.dedent(code), str(README), "exec"), names)
    state = names["model"].state_dict()
    zeros = sum(int((state[name] == 0).sum()) for name in names["tickets"].layout.prunable)
    assert zeros >= names["tickets"].layout.n - names["tickets"][7].keep
    assert torch.equal(state["8.bias"], names["pooled"].state_dict["8.bias"])
    assert (tmp_path / "run" / "tickets.json").exists()
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], names["model"].eval()(names["images"]), rtol=1e-4, atol=1e-5)
