"""Names and masks of others' networks: of wrappers, torch.nn.utils.prune and tied weights; zeros nobody pruned."""

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

import lpk
from lpk import models
from lpk.networks.flat import Layout
from lpk.networks.prunable import convolutions
from lpk.tickets import conventions
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.same import same


def test_modules_and_their_state_dicts(tickets, networks):
    assert same(Tickets.from_state_dicts(networks), tickets)
    assert same(Tickets.from_state_dicts([n.state_dict() for n in networks]), tickets)
    wrapped = [nn.DataParallel(network) for network in networks]
    assert same(Tickets.from_state_dicts(wrapped, model=make_network()), tickets)


def test_pruned_again_and_again_by_pytorch():
    model = make_network()
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    states = []
    for _ in range(3):
        prune.global_unstructured([(model[0], "weight"), (model[3], "weight")], prune.L1Unstructured, amount=0.3)
        prune.l1_unstructured(model[3], "bias", amount=1)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    read = Tickets.from_state_dicts(states, model=make_network())
    assert read.layout.prunable == ("0.weight", "3.weight", "3.bias")
    for ticket, state in zip(read, states, strict=True):
        for name, mask in ticket.masks.items():
            assert torch.equal(mask, state[f"{name}_mask"].bool())
            assert torch.equal(ticket.state_dict[name], state[f"{name}_orig"] * state[f"{name}_mask"])


def test_averaged_models(tickets, networks, tmp_path):
    """torch.optim.swa_utils.AveragedModel adds a counter and a prefix."""
    averaged = [torch.optim.swa_utils.AveragedModel(make_network()) for _ in tickets]
    for ticket, model in zip(tickets, averaged, strict=True):
        model.module.load_state_dict(ticket.state_dict)
        torch.save(model.state_dict(), tmp_path / f"{ticket.round}.pt")
    model = torch.optim.swa_utils.AveragedModel(make_network())
    assert same(Tickets.from_checkpoints(tmp_path), tickets)
    assert same(Tickets.from_checkpoints(tmp_path, model=model), tickets)
    assert same(Tickets.from_state_dicts(averaged, model=make_network()), tickets)
    assert Layout.of_model(model) == tickets.layout
    own = {"n_averaged": torch.tensor(3), "module.weight": torch.eye(2), "bias": torch.ones(2)}
    assert "n_averaged" in conventions.network(own).state, "it is another network's own entry"


# --- tied weights, and zeros ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Its head is its embedding, whose row of zeros stands for no token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("causal", torch.ones(3, 3).tril())

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))


@pytest.fixture
def tied_states():
    """State dicts of a tied network whose embedding and layer are pruned step by step."""
    torch.manual_seed(0)
    model, states = Tied(), []
    for i in range(3):
        with torch.no_grad():
            model.embedding.weight[1, :i] = 0
            model.layer.weight[0, :i] = 0
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return states


@pytest.mark.parametrize("kept", [["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]])
def test_what_the_model_ties_is_tied_whichever_names_files_hold(tied_states, tmp_path, kept):
    for i, state in enumerate(tied_states):
        state = {n: t for n, t in state.items() if n in kept or n not in ("embedding.weight", "head.weight")}
        safetensors.torch.save_file(state, tmp_path / f"{i}.safetensors")
    read = Tickets.from_checkpoints(tmp_path, model=Tied())
    assert read.layout.aliases == {"head.weight": "embedding.weight"}
    assert read.layout.order == tuple(Tied().state_dict())
    for ticket, state in zip(read, tied_states, strict=True):
        for name, tensor in ticket.state_dict.items():
            assert torch.equal(tensor, state[name])
    samples = torch.randint(0, 9, (20, 3)), torch.randint(0, 9, (20,))
    pooled = lpk.pool(read, 2, model=Tied(), validation=samples, progress=False).state_dict
    assert pooled["head.weight"] is pooled["embedding.weight"]


def test_files_of_safetensors_save_model_are_read(tied_states, tmp_path):
    for i, state in enumerate(tied_states):
        model = Tied()
        model.load_state_dict(state)
        safetensors.torch.save_model(model, str(tmp_path / f"{i}.safetensors"))
    read = Tickets.from_checkpoints(tmp_path, model=Tied())
    for ticket, state in zip(read, tied_states, strict=True):
        assert torch.equal(ticket.state_dict["head.weight"], state["head.weight"])


def test_copies_of_a_tied_tensor_that_differ_are_named(tied_states):
    tied_states[1]["head.weight"][3, 3] = 0
    with pytest.raises(ValueError, match=r"ticket 1: 'embedding\.weight' and 'head\.weight' are one tensor in the net"):
        Tickets.from_state_dicts(tied_states, model=Tied())


def test_a_mask_of_either_name_prunes_a_tied_tensor(tied_states):
    mask = torch.rand(9, 4) < 0.5
    for model, state in ((Tied(), tied_states[0]), (None, Tied().state_dict())):
        ticket = Tickets.from_state_dicts([state], [{"head.weight": mask}], model=model)[0]
        assert torch.equal(ticket.masks["embedding.weight"], mask)


def test_zeros_that_nobody_pruned_are_not_taken_for_pruning(tied_states):
    states = [tied_states[0] | {"layer.weight": state["layer.weight"]} for state in tied_states]
    read = Tickets.from_state_dicts(states, model=Tied())
    assert read.layout.prunable == ("layer.weight",) and [ticket.keep for ticket in read] == [16, 15, 14]
    read = Tickets.from_state_dicts(tied_states, model=Tied())
    assert read.layout.prunable == ("embedding.weight", "layer.weight")
    assert not read[0].masks["embedding.weight"][0].any(), "a zero of a pruned tensor is pruned, wherever it stands"
    smaller = nn.Embedding(3, 4, padding_idx=2)
    states = [{"weight": torch.tensor([[1.0, 0.0]])}]  # it does not have that row
    with pytest.raises(ValueError, match="another network than ticket 0"):
        Tickets.from_state_dicts(states, model=smaller)


def test_prunable_names_take_the_place_of_the_guess(tied_states):
    names = ["layer.weight"]
    read = Tickets.from_state_dicts(tied_states, prunable=names)
    assert list(read.layout.prunable) == names and [ticket.keep for ticket in read] == [16, 15, 14]
    dense = Tickets.from_state_dicts([make_network().state_dict()], prunable=["3.weight"])
    assert dense.layout.prunable == ("3.weight",) and dense[0].density == 1
    with pytest.raises(ValueError, match=r"'fc\.weight' is to be pruned, but"):
        Tickets.from_state_dicts(tied_states, prunable=["fc.weight"])
    with pytest.raises(ValueError, match="the tickets have masks"):
        Tickets.from_state_dicts(tied_states[:1], [{"layer.weight": torch.ones(4, 4)}], prunable=names)


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_tickets_of_a_torchvision_network(tmp_path):
    torch.manual_seed(0)
    model = models.build("torchvision/shufflenet_v2_x0_5", classes=3, shape=(3, 32, 32))
    weights = [(model.get_submodule(n.removesuffix(".weight")), "weight") for n in convolutions(model)]
    for i in range(3):
        torch.save(model.state_dict(), tmp_path / f"{i}.pth")
        prune.global_unstructured(weights, prune.L1Unstructured, amount=0.2)
    fresh = models.build("torchvision/shufflenet_v2_x0_5", classes=3, shape=(3, 32, 32))
    tickets = Tickets.from_checkpoints(tmp_path, model=fresh)
    assert tickets.layout.order == tuple(fresh.state_dict())
    assert tickets[2].density == pytest.approx(0.64, abs=1e-4)
    images = torch.randn(8, 3, 32, 32), torch.randint(0, 3, (8,))
    pooled = lpk.pool(tickets, 1, model=fresh, validation=images, calibration=images, progress=False)
    fresh.load_state_dict(pooled.state_dict)
