import itertools
import math

import pytest
import torch
from torch import nn

import lpk
from lpk import ops
from lpk.networks.flat import Flat, Layout
from lpk.pooling.interpolations import Interpolations
from lpk.pooling.methods import METHODS
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests import reference
from tests.conftest import make_images

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]


def bits(vector):
    return vector.cpu().view(torch.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep", [None, 40])
def test_what_is_the_same_in_both_networks_stays(device, keep):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1000, generator=generator) for _ in range(2))
    same = torch.rand(1000, generator=generator) < 0.5
    a[same] = b[same] = torch.cat((torch.arange(0.0, 300.0), torch.randn(700, generator=generator)))[same]
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    a[-5:] = b[-5:] = special
    a[0], b[0], a[1], b[1] = 0.0, -0.0, -0.0, 0.0
    same[-5:], same[:2] = True, True
    best, other = (Flat(torch.randn(100, generator=generator), rest, {}).to(device) for rest in (a, b))
    interpolations = Interpolations(best, other, lpk.COEFFICIENTS, keep)
    for k, alpha in enumerate(lpk.COEFFICIENTS):
        weights, rest = torch.empty_like(best.weights), torch.empty_like(best.rest)
        interpolations.write(k, weights=weights, rest=rest)
        assert torch.equal(bits(rest)[same], bits(a)[same])
        assert torch.equal(bits(rest)[~same], bits(ops.interpolate(a[~same], b[~same], alpha)))
        pruned = ops.interpolate(best.weights, other.weights, alpha)
        assert torch.equal(weights, pruned if keep is None else ops.magnitude_prune(pruned, keep))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_parts_are_pruned_on_their_own(device, density):
    """Against the plain reference; with and without packing, at starts that are aligned to nothing."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(-9, 10, (3000,), generator=generator) / 7 for _ in range(2))
    for x in (a, b):
        x[torch.rand(3000, generator=generator) >= density] = 0.0
    cuts = [0, 1, 18, 1001, 1002, 3000]
    parts = [(slice(i, j), round(0.9 * density * (j - i))) for i, j in itertools.pairwise(cuts)]
    best, other = (Flat(x, torch.zeros(1), {}).to(device) for x in (a, b))
    interpolations = Interpolations(best, other, lpk.COEFFICIENTS, parts)
    if device == "cpu":
        assert any(part.packed is not None for part in interpolations.parts) == (density < 0.5)
    for k, alpha in enumerate(lpk.COEFFICIENTS):
        weights, rest = torch.empty_like(best.weights), torch.empty_like(best.rest)
        interpolations.write(k, weights=weights, rest=rest)
        expected = [reference.interpolate_prune(a[span], b[span], alpha, keep) for span, keep in parts]
        assert torch.equal(bits(weights), bits(torch.cat(expected)))


class Attends(nn.Module):
    """A network with what must not move: an index, a frozen layer, a causal mask."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("index", torch.arange(13.0, 19.0))
        self.register_buffer("mask", torch.full((6, 6), -math.inf).triu(1))
        self.register_buffer("rotation", torch.polar(torch.ones(6), torch.arange(6.0)))

    def forward(self, x):
        x = x[:, 0, :, (self.index - 13).long()]
        attention = (self.first(x) @ x.transpose(1, 2) + self.mask).softmax(-1)
        return self.last(self.frozen(attention @ x)).mean(1)


@pytest.mark.parametrize("prune", ["during", "after"])
def test_a_pool_has_what_its_tickets_agree_in(prune):
    torch.manual_seed(0)
    model, images = Attends(), make_images(60, seed=1)
    layout = Layout.of_model(model, ["first.weight"])
    kept = ("frozen.weight", "frozen.bias", "index", "mask", "rotation")
    tickets = []
    for i in range(5):
        with torch.no_grad():
            for parameter in (*model.first.parameters(), *model.last.parameters()):
                parameter.copy_(torch.randn_like(parameter))
        tickets.append(Ticket.of(i, layout, model.state_dict(), torch.arange(36) < 36 - 4 * i))
    accepted = 0
    for method in METHODS:
        pools = lpk.pool(
            Tickets(tickets), model=model, validation=images, method=method, prune=prune, search="exhaustive",
            progress=False,
        )  # fmt: skip
        for pooled in pools:
            accepted += sum(step.accepted for step in pooled.steps)
            moved = [name for name in kept if not torch.equal(pooled.state_dict[name], model.state_dict()[name])]
            assert not moved, f"{method} moved {moved}"
    assert accepted > 50
