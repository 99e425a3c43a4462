"""What a sparse network says of itself, and where the model of costs sends it."""

import pytest
import torch
import torchvision
from torch import nn

import lpk
from lpk.sparse import choice
from lpk.sparse.choice import Estimate
from lpk.sparse.network import Network
from tests.sparse.networks import pruned
from tests.tables import cells

INPUTS = torch.randn(2, 3, 16, 16)


def network():
    torch.manual_seed(0)
    layers = (
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Softplus()),
        *(nn.Conv2d(32, 32, 3, groups=32), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    )
    return pruned(nn.Sequential(*layers), 0.2).requires_grad_(False)


def test_a_profile_has_every_step():
    made = lpk.sparsify(network())
    profile = made.profile(INPUTS, repetitions=3)
    others = [row.way for row in profile.rows if row.density is None]
    assert others == ["pack", "unpack", "PyTorch", "pack", "pool", "unpack"]
    first, depthwise, last = (row for row in profile.rows if row.density is not None)
    assert (first.name, depthwise.name, last.name) == ("0", "4", "8") and depthwise.way == "depthwise"
    weight = made._model[0][0].weight if made._model[0][0].weight.count_nonzero() else None
    layer = network()[0].weight
    assert weight is None and first.products == int(layer.count_nonzero()) * 16 * 16 * 2
    assert first.density == int(layer.count_nonzero()) / layer.numel() and first.bytes == 4 * 2 * 35 * 256
    assert all(row.milliseconds > 0 for row in profile.rows)
    assert profile.milliseconds == pytest.approx(sum(row.milliseconds for row in profile.rows))
    lines = str(profile).splitlines()
    assert len(lines) == 2 + 1 + len(profile.rows) + 1 and "/" not in lines[3].replace(" / ", "")


def test_a_network_says_where_it_runs():
    made = lpk.sparsify(network())
    assert repr(made).startswith("Sparse(Sequential: 2") and "pruned weights left" in repr(made)
    made(INPUTS)
    assert "(3, 16, 16): 3 layers on the engine, 1 part in PyTorch" in repr(made)
    layers = [layer for layer in network() if hasattr(layer, "weight") and layer.weight.dim() > 1]
    pixels = (256, 14 * 14, 1)
    counts = [
        sum(count(layer.weight) * n for layer, n in zip(layers, pixels, strict=True)) / 1e6
        for count in (lambda weight: int(weight.count_nonzero()), torch.Tensor.numel)
    ]
    assert f"; {counts[0]:.3g} of {counts[1]:.3g} million multiply-adds a sample)" in repr(made)
    ways = [row.way for row in made.profile(INPUTS, repetitions=1).rows if row.density is not None]
    said = ", ".join(f"{ways.count(way)} {way}" for way in dict.fromkeys(ways))
    assert f"; with 2 samples: {said};" in repr(made)
    assert repr(lpk.sparsify(nn.Linear(2, 2))) == "Sparse(Linear: not pruned)"


def test_a_notebook_shows_each_step():
    made = lpk.sparsify(network(), fallback="torch")
    assert cells(made._repr_html_()) == []
    made(INPUTS)
    rows = made.profile(INPUTS, repetitions=1).rows
    shown = cells(made._repr_html_())
    assert [line[:2] for line in shown] == [[row.name, row.way] for row in rows]
    for (_, _, density, products, dense), row in zip(shown, rows, strict=True):
        assert density == ("" if row.density is None else f"{100 * row.density:.2f}%")
        assert products == (f"{row.products / 2e6:.3g}" if row.products else "")
        assert dense == ("" if row.density is None else f"{row.products / row.density / 2e6:.3g}")
    hooked = network()
    hooked.register_forward_hook(lambda *_: None)
    in_pytorch = lpk.sparsify(hooked, fallback="torch")
    in_pytorch(INPUTS)
    assert "(3, 16, 16): in PyTorch" in in_pytorch._repr_html_()


def test_what_takes_less_time_in_pytorch_runs_there(monkeypatch):
    monkeypatch.setattr(Network, "estimate", lambda self, size: Estimate(engine=1.0, pytorch=1.05))
    model = network()
    made = lpk.sparsify(model)
    for inputs in (INPUTS, INPUTS, torch.randn(17, 3, 16, 16)):
        torch.testing.assert_close(made(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    assert made._pytorch is not None
    assert [row.way for row in made.profile(INPUTS).rows] == ["PyTorch"]
    monkeypatch.setattr(Network, "estimate", lambda self, size: Estimate(engine=1.0, pytorch=1.2))
    torch.testing.assert_close(made(INPUTS), model(INPUTS), rtol=1e-4, atol=1e-5)
    assert len(made.profile(INPUTS).rows) > 1


def test_estimates_of_networks():
    """Those that the engine has whole, and one of which it has hardly anything."""
    torch.manual_seed(0)
    sparse = pruned(torchvision.models.resnet18(), 0.1)
    for batch in (1, 16):
        found = Network(sparse, (3, 64, 64), dead=False).estimate(batch)
        assert found.engine_pays and found.engine < found.pytorch / 2
    foreign = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Conv2d(8, 8, 1), nn.Softplus()))).eval()
    assert not Network(foreign, (8, 64, 64), dead=False).estimate(16).engine_pays
    assert choice.MARGIN > 1


def test_estimates_are_made_anew_for_other_weights():
    model = pruned(nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)), 0.05)
    made = Network(model, (64, 20, 20))
    before = made.estimate(16).engine
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    made.changed()
    assert made.estimate(16).engine > 2 * before
