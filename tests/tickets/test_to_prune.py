"""The way back: a ticket or a pooled network given to torch.nn.utils.prune."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lpk
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.same import same

PAGE = Path(__file__).parents[2] / "docs" / "import.md"


@pytest.mark.parametrize("what", ["ticket", "pooled"])
def test_the_way_back_to_pruning_hooks(tickets, what, tmp_path):
    ticket = tickets[3]
    if what == "pooled":
        images = torch.randn(20, 1, 6, 6), torch.randint(0, 3, (20,))
        ticket = lpk.pool(
            tickets, 3, model=make_network(), validation=images, calibration=images, candidates=2, progress=False
        )
    model = make_network(seed=5)
    prune.random_unstructured(model[0], "weight", amount=0.5)  # whatever it was pruned by before is undone
    prune.random_unstructured(model[8], "weight", amount=0.5)
    ticket.to_prune(model)
    assert {name for name in model.state_dict() if name.endswith("_mask")} == {"0.weight_mask", "3.weight_mask"}
    plain = make_network()
    plain.load_state_dict(ticket.state_dict)
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(model.eval()(x), plain.eval()(x))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(x).square().sum().backward()
        optimizer.step()
    model(x)
    for name, mask in ticket.layout.masks(ticket.mask).items():
        weight = model.get_parameter(f"{name}_orig") * mask
        assert torch.equal(model.get_submodule(name.split(".")[0]).weight, weight)
        assert not torch.equal(weight, plain.state_dict()[name])

    torch.save(model.state_dict(), tmp_path / "again.pt")
    assert torch.equal(Tickets.from_checkpoints([tmp_path / "again.pt"])[0].mask, ticket.mask)


def test_what_goes_back_as_the_page_says(tickets, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    model = make_network(seed=5)
    pooled = lpk.pool(tickets, 3, model=model, evaluate=lambda model: 0.0, statistics="leave", progress=False)
    exec(code, {"model": model, "pooled": pooled})
    assert torch.equal(lpk.Pooled.load("pooled.safetensors").mask, pooled.mask)
    again = Tickets.from_state_dicts([model], model=make_network())  # a pruned model has its entries in another order
    assert same(again, Tickets.from_state_dicts([pooled.state_dict], [pooled.masks]))


def test_tied_weights_go_back_tied():
    def tied():
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        model[1].weight = model[0].weight
        return model

    state = tied().state_dict()
    state["0.weight"][0, :3] = 0
    ticket = Tickets.from_state_dicts([state])[0]
    model = tied()
    ticket.to_prune(model)
    assert model[0].weight_orig is model[1].weight_orig
    assert torch.equal(model[0].weight_mask, model[1].weight_mask)
    model(torch.randn(5, 4)).square().sum().backward()
    assert not model[0].weight_orig.grad[0, :3].any()


def test_to_prune_refuses_another_network(tickets):
    with pytest.raises(ValueError, match=r"another network than the model: '0\.weight' has shape"):
        tickets[1].to_prune(nn.Sequential(nn.Linear(2, 2, bias=False), *list(make_network())[1:]))
