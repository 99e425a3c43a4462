"""Folders and runs as other tools leave them, by those tools' own rules, read as tickets."""

import re

import pytest
import safetensors.torch
import torch
from torch import nn

from lpk import models
from lpk.tickets import checkpoints
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.same import same

# --- the paper's CIFAR code -------------------------------------------------------------------------------------------


class Normalized(nn.Module):
    """As in the paper's code, a layer of buffers before the network."""

    def __init__(self, network):
        super().__init__()
        self.normalize = nn.Module()
        self.normalize.register_buffer("mean", torch.tensor([0.5071, 0.4866, 0.4409]))
        self.normalize.register_buffer("std", torch.tensor([0.2673, 0.2564, 0.2762]))
        for name, layer in network.named_children():
            self.add_module(name, layer)


def save_as_the_papers_code(folder, networks):
    """What its main_imp.py saves at the end of an epoch: the weights beside optimizer, schedule and results."""
    torch.save(networks[0].state_dict(), folder / "epoch_9_rewind_weight.pt")
    for i, model in enumerate(networks):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[91, 136], gamma=0.1)
        content = {
            "state": i,
            "result": {"train_ta": [10.5], "val_ta": [9.5], "test_ta": [9.0]},
            "epoch": 182,
            "state_dict": Normalized(model).state_dict(),
            "best_sa": 9.5,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "init_weight": networks[0].state_dict(),
        }
        torch.save(content, folder / f"{i}model_SA_best.pth.tar")
        later = {name: tensor + 1 for name, tensor in content["state_dict"].items() if "mask" not in name}
        torch.save(content | {"state_dict": content["state_dict"] | later}, folder / f"{i}checkpoint.pth.tar")
        (folder / f"{i}net_train.png").write_bytes(b"")


def test_the_papers_code(tickets, networks, tmp_path):
    save_as_the_papers_code(tmp_path, networks)
    assert [c.path.name for c in checkpoints.find(tmp_path)] == [f"{i}model_SA_best.pth.tar" for i in range(5)]
    assert same(Tickets.from_checkpoints(tmp_path, model=make_network()), tickets)
    as_it_was = Tickets.from_checkpoints(tmp_path)
    assert "normalize.mean" in as_it_was[0].state_dict
    Normalized(make_network()).load_state_dict(as_it_was[3].state_dict)


def test_the_last_epochs_where_no_best_was_kept(networks, tmp_path):
    save_as_the_papers_code(tmp_path, networks)
    for path in tmp_path.glob("*best*"):
        path.unlink()
    assert [c.path.name for c in checkpoints.find(tmp_path)] == [f"{i}checkpoint.pth.tar" for i in range(5)]
    (tmp_path / "2checkpoint.pth.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"2checkpoint\.pth\.tar is missing"):
        checkpoints.find(tmp_path)


def test_rounds_are_in_the_order_of_their_numbers(tmp_path):
    for i in reversed(range(12)):
        (tmp_path / f"{i}model_SA_best.pth.tar").touch()
    assert [c.path.name for c in checkpoints.find(tmp_path)] == [f"{i}model_SA_best.pth.tar" for i in range(12)]


@pytest.mark.parametrize(("name", "layers"), [("resnet18", (64, "layer4.1.conv2")), ("vgg16", (128, "features.40"))])
def test_the_papers_networks_have_the_names_of_ours(name, layers):
    """The state dict keys of its models/ResNet.py and VGG.py: torchvision's, with a single linear layer in VGG."""
    ours = models.build(name, classes=100, shape=(3, 32, 32)).state_dict()
    assert f"{layers[1]}.weight" in ours
    last = "fc" if name == "resnet18" else "classifier"
    assert ours[f"{last}.weight"].shape == (100, 512) and not [n for n in ours if n.startswith(f"{last}.0")]


# --- OpenLTH ----------------------------------------------------------------------------------------------------------


def save_as_open_lth(root, tickets, *, end=(160, 0), wrapped=False):
    """As LotteryRunner leaves it: mask.pth of int32 tensors, the weights at the first and the last step, a logger.

    The last optimizer step moves masked weights, too: a model file alone does not tell what is pruned.
    """
    prefix = "model." if wrapped else ""
    pretrain = root / "replicate_1" / "level_pretrain" / "main"
    pretrain.mkdir(parents=True)
    torch.save(tickets[0].state_dict, pretrain / "model_ep2_it0.pth")
    for ticket in tickets:
        location = root / "replicate_1" / f"level_{ticket.round}" / "main"
        location.mkdir(parents=True)
        masks = {prefix + name: mask.int() for name, mask in ticket.masks.items()}
        torch.save(masks, location / "mask.pth")
        trained = {
            prefix + name: tensor + (0.01 * (1 - masks[prefix + name]) if prefix + name in masks else 0)
            for name, tensor in ticket.state_dict.items()
        }
        torch.save({name: torch.zeros_like(t) for name, t in trained.items()}, location / "model_ep2_it0.pth")
        torch.save(trained, location / "model_ep{}_it{}.pth".format(*end))
        torch.save({"ep": 160, "it": 0, "model_state_dict": trained}, location / "checkpoint.pth")
        (location / "sparsity_report.json").write_text("{}")
        (location / "logger").write_text("test_accuracy,0,0.1\n")
    return root


@pytest.mark.parametrize("end", [(160, 0), (10, 3)])
def test_open_lth(tickets, tmp_path, end):
    root = save_as_open_lth(tmp_path / "lottery_0123", tickets, end=end)
    assert same(Tickets.from_checkpoints(root), tickets)
    assert same(Tickets.from_checkpoints([root / "replicate_1"]), tickets)


def test_open_lths_networks_for_imagenet_are_torchvisions_in_a_wrapper(tickets, tmp_path):
    root = save_as_open_lth(tmp_path / "run", tickets, wrapped=True)
    assert Tickets.from_checkpoints(root).layout.prunable == ("model.0.weight", "model.3.weight")
    assert same(Tickets.from_checkpoints(root, model=make_network()), tickets)


def test_open_lth_says_what_is_missing(tickets, tmp_path):
    root = save_as_open_lth(tmp_path / "run", tickets)
    level = root / "replicate_1" / "level_4" / "main"
    (level / "model_ep160_it0.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"level_4/main has no model_ep160_it0\.pth"):
        checkpoints.find(root)
    (level / "model_ep160_it0.pth").touch()
    (level / "mask.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"level_4/main/mask\.pth does not exist"):
        checkpoints.find(root)
    (root / "replicate_1" / "level_2").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"replicate_1/level_2 is missing"):
        checkpoints.find(root)
    (root / "replicate_2").mkdir()
    with pytest.raises(ValueError, match="replicate_1, replicate_2, which are runs of their own"):
        checkpoints.find(root)


def test_open_lth_masks_of_another_network(tickets, tmp_path):
    root = save_as_open_lth(tmp_path / "run", tickets)
    path = root / "replicate_1" / "level_1" / "main" / "mask.pth"
    torch.save({"fc.weight": torch.ones(3, 3, dtype=torch.int32)}, path)
    with pytest.raises(ValueError, match=r"level_1/main/model_ep160_it0\.pth: the mask of 'fc\.weight'"):
        Tickets.from_checkpoints(root)


# --- plain files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pt", "pth", "bin", "safetensors"])
def test_a_folder_of_plain_state_dicts(tickets, tmp_path, kind):
    for ticket in tickets:
        path = tmp_path / f"round{ticket.round + 8}.{kind}"  # 10 after 9
        (safetensors.torch.save_file if kind == "safetensors" else torch.save)(ticket.state_dict, path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    model = make_network() if kind == "safetensors" else None  # safetensors keep no order
    assert same(Tickets.from_checkpoints(tmp_path, model=model), tickets)


@pytest.mark.parametrize("stray", ["best.pt", "round8-ema.pt", "weights-last.ckpt", "round8.safetensors"])
def test_a_file_that_may_be_no_round_is_named(tickets, tmp_path, stray):
    rounds = [tmp_path / f"round{ticket.round + 8}.pt" for ticket in tickets]
    for ticket, path in zip(tickets, rounds, strict=True):
        torch.save(ticket.state_dict, path)
    (tmp_path / stray).write_bytes(rounds[0].read_bytes())
    with pytest.raises(ValueError, match=rf"{stray} may be no round: its name differs from round8\.pt"):
        Tickets.from_checkpoints(tmp_path)
    assert same(Tickets.from_checkpoints(rounds), tickets)


def test_lightnings_checkpoints(tickets, tmp_path):
    for ticket in tickets:
        state = {f"model.{name}": tensor for name, tensor in ticket.state_dict.items()}
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / f"round={ticket.round}.ckpt")
    assert same(Tickets.from_checkpoints(tmp_path, model=make_network()), tickets)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no checkpoints"):
        Tickets.from_checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        Tickets.from_checkpoints([tmp_path / "nowhere"])


def test_checkpoints_that_do_not_fit_are_named(tickets, tmp_path):
    first, second = (ticket.state_dict for ticket in tickets[1:3])
    torch.save(first, tmp_path / "a.pt")

    def error(second, *, model=None, order=("a", "b")):
        torch.save(second, tmp_path / "b.pt")
        with pytest.raises(ValueError) as raised:
            Tickets.from_checkpoints([tmp_path / f"{name}.pt" for name in order], model=model)
        return str(raised.value)

    assert "b.pt does not match" in error({n: t for n, t in second.items() if n != "8.bias"})
    assert "'8.bias' has shape (5,), not (3,)" in error(second | {"8.bias": torch.zeros(5)})
    assert re.search(r"b\.pt: 8\.bias\[0\] is nan", error(second | {"8.bias": torch.full((3,), torch.nan)}))
    back = error(second, order=("b", "a"))
    assert f"a.pt has {tickets[1].keep - tickets[2].keep} weights that" in back and "b.pt has pruned" in back
    other = nn.Sequential(*list(make_network())[:8], nn.Linear(8, 4))
    message = error(second, model=other)
    assert "the model is another network than" in message and "'8.weight' has shape (4, 8), not (3, 8)" in message

    torch.save(make_network().state_dict(), tmp_path / "a.pt")
    assert "no ticket has a zero weight or a mask" in error(make_network(1).state_dict())


def test_a_weight_that_comes_back_is_an_error_of_files_alone(tickets, tmp_path):
    """Files are taken for one run of IMP; from_state_dicts also takes sparse training with regrowth."""
    states = [ticket.state_dict for ticket in tickets[:3]]
    mask = tickets[2].mask.clone()
    pruned, kept = torch.nonzero(~tickets[1].mask)[0], torch.nonzero(mask)[0]
    mask[pruned], mask[kept] = True, False
    ticket = Ticket(2, tickets.layout, tickets[0].flat._replace(weights=torch.where(mask, 1.0, 0.0)), mask)
    states[2] = ticket.state_dict
    for i, state in enumerate(states):
        torch.save(state, tmp_path / f"{i}.pt")
    with pytest.raises(ValueError, match=r"2\.pt has 1 weights that \S+1\.pt has pruned"):
        Tickets.from_checkpoints(tmp_path)
    assert Tickets.from_state_dicts(states)[2].keep == ticket.keep


def test_lpks_own_files_are_not_imported(tickets, tmp_path):
    tickets.save(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is lpk's own: lpk.Tickets.load reads it"):
        Tickets.from_checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"round-00-\w+\.safetensors is lpk's own"):
        Tickets.from_checkpoints(sorted(tmp_path.glob("*.safetensors")))
