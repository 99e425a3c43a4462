"""Networks that PyTorch pruned, as others have them; and a file of every kind."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.tickets.kinds import Kind, make_kinds


@pytest.fixture(scope="module")
def networks(tickets: Tickets) -> list[nn.Module]:
    """The tickets as modules pruned by torch.nn.utils.prune; the dense one is not pruned."""
    made = [make_network(i) for i in range(len(tickets))]
    made[0].load_state_dict(tickets[0].state_dict)
    for ticket, model in zip(tickets[1:], made[1:], strict=True):
        model.load_state_dict(ticket.state_dict)
        for name, mask in ticket.masks.items():
            prune.custom_from_mask(model.get_submodule(name.split(".")[0]), "weight", mask)
        with torch.no_grad():  # masked weights move while training: the mask alone says that they are pruned
            model[0].weight_orig += 1 - model[0].weight_mask
    return made


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """A file of each kind; who damages one makes it whole again."""
    return make_kinds(tmp_path_factory.mktemp("kinds"))
