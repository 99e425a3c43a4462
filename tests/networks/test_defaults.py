"""Whatever PyTorch's default dtype and device are: every tensor that lpk makes names its own."""

import copy

import pytest
import torch
from torch import nn

import lpk
from lpk import export, ops
from lpk.data import sets as data
from tests.conftest import make_images, make_network, sgd


class Known(nn.Module):
    """Everything that the engine has, one operation that it has not, and BatchNorm by itself."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = make_network(), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.body(nn.functional.max_pool2d(self.norm(torch.sigmoid(x)), 2, 1))


@pytest.fixture(params=["dtype", "device"])
def defaults(request):
    """Sets the defaults when it is called: a device without values shows each tensor that does not name its own."""

    def start():
        if request.param == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")

    torch.set_num_threads(1)  # sums of gradients depend on how many there are
    yield start
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def results(tmp_path, start=lambda: None):
    """What a run returns, made before and after the defaults were set."""
    (images, labels), validation, calibration = (
        make_images(96, seed=1),
        make_images(50, seed=2),
        make_images(64, seed=3),
    )
    model, other, train, x = make_network(), Known(), sgd(images, labels), torch.randn(3, 1, 6, 6)
    a, b = torch.randn(2, 50)
    start()
    lpk.imp(model, train, epochs=2, rounds=2, rewind=1, store=tmp_path, seed=0, progress=False)
    tickets = lpk.Tickets.load(tmp_path)
    options = {"model": model, "validation": validation, "calibration": calibration, "progress": False}
    options |= {"coefficients": (0.3, 0.7), "batch_size": 30}
    pools = [
        lpk.pool(tickets, 1, backend="torch", **options),
        lpk.pool(tickets, 1, backend="sparse", search="exhaustive", criterion="loss", **options),
        lpk.pool(tickets, 2, search="racing", **options),
        lpk.pool(tickets, 2, method="swa", prune="after", **options),
    ]
    pools[0].save(tmp_path / "pooled.safetensors")
    lpk.Tickets.from_state_dicts([ticket.state_dict for ticket in tickets])
    made = [pooled.state_dict[name] for pooled in pools for name in pooled.state_dict]
    fast = lpk.sparsify(model, tmp_path / "pooled.safetensors")
    made += [fast(x), fast(x[:0]), copy.deepcopy(fast)(x), lpk.sparsify(other, fallback="torch")(x)]
    fast.save(tmp_path / "sparse.safetensors")
    made.append(lpk.sparsify(model, tmp_path / "sparse.safetensors")(x))
    made += [ops.interpolate(a, b, 0.3), *ops.interpolate_threshold(a, b, [0.2, 0.5], 20)]
    made += [ops.interpolate_prune(a, b, 0.3, 20), ops.magnitude_prune(a, 7), ops.magnitude_mask(a, 7)]
    return made


def test_a_run_gives_the_same_under_any_defaults(tmp_path, defaults):
    expected = results(tmp_path / "a")
    made = results(tmp_path / "b", defaults)
    torch.set_default_device(None)
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.device == theirs.device and torch.equal(ours, theirs)


def test_samples_and_programs_are_the_same_under_any_defaults(tmp_path, defaults):
    model, x = make_network().eval(), torch.randn(3, 1, 6, 6)

    def made():
        splits = data.load("digits", root=None, validation=50, train=100)
        loaders = [splits.train.loader(10, seed=3, augment=True), splits.validation.loader(20)]
        return [tensor for loader in loaders for batch in loader for tensor in batch]

    expected = made()
    for name in ("a", "b"):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    defaults()
    ours = made()
    export.program(model, tmp_path / "net.pt2", (1, 6, 6))
    imported = lpk.Tickets.from_checkpoints([tmp_path / "a.pt", tmp_path / "b.pt"], prunable=["0.weight"])
    torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(imported[1].state_dict["0.weight"], model[0].weight)
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), model(x))
