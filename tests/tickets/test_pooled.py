import pytest
import safetensors.torch
import torch

import lpk
from lpk.pooling.pool import pool
from lpk.tickets import files
from tests.pooling.pools import CHOICES, same_network
from tests.tables import cells


def test_pooled_survives_its_file(tickets, network, validation, calibration, tmp_path):
    pooled = pool(tickets, 3, model=network, validation=validation, calibration=calibration, **CHOICES)
    pooled.save(tmp_path / "a.safetensors")
    read = lpk.Pooled.load(tmp_path / "a.safetensors")
    assert same_network(read, pooled) and torch.equal(read.mask, pooled.mask)
    for name in ("round", "accuracy", "baseline_accuracy", "steps", "forward_samples", "seconds", "settings"):
        assert getattr(read, name) == getattr(pooled, name), name


@pytest.mark.parametrize("damage", ["truncate", "flip", "not ours"])
def test_damaged_pooled_file_is_named(tickets, network, validation, calibration, tmp_path, damage):
    path = tmp_path / "a.safetensors"
    pool(tickets, 3, model=network, validation=validation, calibration=calibration, **CHOICES).save(path)
    content = bytearray(path.read_bytes())
    if damage == "not ours":
        safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    elif damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-50])
    with pytest.raises(files.FileDamaged, match=r"a\.safetensors"):
        lpk.Pooled.load(path)


def test_a_notebook_shows_the_steps(tickets, network, validation, calibration):
    pooled = pool(tickets, 3, model=network, validation=validation, calibration=calibration, **CHOICES)
    shown = pooled._repr_html_()
    assert str(pooled) in shown
    for step, line in zip(pooled.steps, cells(shown), strict=True):
        coefficient = "–" if step.coefficient is None else f"{step.coefficient:g}"
        accuracy = "–" if step.accuracy is None else f"{step.accuracy:.4f}"
        assert line == [str(step.candidate), coefficient, accuracy, "accepted" if step.accepted else "rejected"]
