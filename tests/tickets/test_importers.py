"""lpk.importers: files as other tools write them, by those tools' own rules, read as tickets; and the way back."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import typer
from torch import nn
from torch.nn.utils import prune

import lpk
from lpk import models
from lpk.cli import app
from lpk.networks.flat import Layout
from lpk.networks.prunable import convolutions
from lpk.tickets import checkpoints, conventions, files, state_dicts
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets
from tests.conftest import make_network
from tests.tickets.test_tickets import same

PAGE = Path(__file__).parents[2] / "docs" / "import.md"


@pytest.fixture(scope="module")
def networks(tickets):
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


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"net": state, "acc": 91.5, "epoch": 3},
        lambda state: {"network": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"model_state": state, "optimizer_state": {"weight": {"exp_avg": torch.ones(2)}}},
        lambda state: {"params": state, "rng": torch.get_rng_state()},
        lambda state: {"state_dict_ema": state, "args": {"lr": 0.1}},
        lambda state: {"ema": {"module": state, "decay": 0.99}},
        lambda state: {"state_dict": state, "state_dict_ema": {name: t + 1 for name, t in state.items()}},
        lambda state: {"model": {"name": "resnet", "depth": 18}, "weights": state},
    ],
)
def test_the_one_state_dict_of_a_file_is_found(tickets, tmp_path, content):
    for ticket in tickets:
        torch.save(content(ticket.state_dict), tmp_path / f"{ticket.round}.pt")
    assert same(Tickets.from_checkpoints(tmp_path), tickets)


def test_of_several_state_dicts_key_names_one(tickets, tmp_path, monkeypatch):
    for ticket in tickets:
        other = {name: tensor + 1 for name, tensor in ticket.state_dict.items()}
        torch.save({"net": other, "ema": {"shadow": ticket.state_dict}, "epoch": 1}, tmp_path / f"{ticket.round}.pt")
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds several state dicts: say by `key` .*'net', 'ema.shad"):
        Tickets.from_checkpoints(tmp_path)
    for key in ("ema.shadow", "ema"):
        assert same(Tickets.from_checkpoints(tmp_path, key=key), tickets)
    for key in ("best", "ema.best", "epoch.x"):
        with pytest.raises(
            files.FileDamaged, match=rf"0\.pt has nothing under the key '{key}': its keys are 'net', 'ema'"
        ):
            Tickets.from_checkpoints(tmp_path, key=key)
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds no state dict: it is a int"):
        Tickets.from_checkpoints(tmp_path, key="epoch")
    lpk_command = typer.main.get_command(app)
    lpk_command(["import", str(tmp_path), str(tmp_path / "run"), "--key", "ema"], standalone_mode=False)
    assert same(Tickets.load(tmp_path / "run"), tickets)


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


# --- what a file's own checksums and sizes say ------------------------------------------------------------------------


def test_a_changed_bit_in_a_pt_file_is_found(tickets, tmp_path):
    path = tmp_path / "0.pt"
    torch.save(tickets[2].state_dict, path)
    content, right = path.read_bytes(), state_dicts.load(path)
    found = 0
    for bit in range(0, 8 * len(content), 8 * len(content) // 300 | 1):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:  # the archive has bytes without a meaning: what pads it, times
            read = state_dicts.load(path)
        except files.FileDamaged as error:
            assert "0.pt" in str(error) and len(str(error).splitlines()) == 1
            found += 1
        else:
            assert read.keys() == right.keys() and all(torch.equal(read[name], right[name]) for name in read)
    assert found > 100
    for length in (len(content) - 1, len(content) // 2, 100):
        path.write_bytes(content[:length])
        with pytest.raises(files.FileDamaged, match=r"0\.pt is damaged"):
            state_dicts.load(path)
    path.write_bytes(
        content[:2000] + b"x" + content[2001:] + content
    )  # PyTorch would read the first, zipfile the second
    with pytest.raises(files.FileDamaged, match=r"0\.pt is not packed as torch\.save does it"):
        state_dicts.load(path)


def packed_again(content, *, method=zipfile.ZIP_STORED, twice=False):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", method) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
            if twice and member.endswith("/0"):
                with pytest.warns(UserWarning, match="Duplicate name"):
                    new.writestr(member, old.read(member))
    return made.getvalue()


@pytest.mark.parametrize("how", [{"method": zipfile.ZIP_DEFLATED}, {"twice": True}])
def test_a_pt_file_that_torch_save_did_not_pack(tmp_path, how):
    """Deflated, 2.4 GiB of zeros are 2.4 MB."""
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(packed_again((tmp_path / "x.pt").read_bytes(), **how))
    with pytest.raises(files.FileDamaged, match=r"x\.pt is not packed as torch\.save does it"):
        state_dicts.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.empty(3, device="meta"), "holds 'a' as a meta tensor"),
        (lambda: torch.eye(3).to_sparse(), "holds 'a' as a sparse_coo tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "holds 'a' as a quantized tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "holds 'a' as a nested tensor"),
        (lambda: torch.ones(1).expand(2**40), "holds tensors of 4,398,046,511,104 bytes in"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, which calls some of these a prototype
def test_tensors_of_other_kinds_are_named(tmp_path, tensor, words):
    try:
        made = tensor()
    except Exception as error:
        pytest.skip(f"this PyTorch does not make it: {error}")
    with pytest.raises(ValueError, match=rf"ticket 0 {words}" if "holds 'a'" in words else ""):
        Tickets.from_state_dicts([{"a": made}] if "holds 'a'" in words else [])
    torch.save({"a": made}, tmp_path / "x.pt")
    with pytest.raises(files.FileDamaged, match=rf"x\.pt {words}") as error:
        state_dicts.load(tmp_path / "x.pt")
    assert len(str(error.value).splitlines()) == 1


def test_other_keys_than_names_and_dicts_that_hold_themselves(tmp_path):
    itself: dict = {"epoch": 3}
    itself["self"] = itself
    for content in ({0: torch.ones(2)}, {"a": torch.ones(2), 0: torch.ones(2)}, itself):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(files.FileDamaged, match=r"x\.pt holds no state dict: its keys are "):
            state_dicts.load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="ticket 0 holds a tensor under 0, which is no name"):
        Tickets.from_state_dicts([{0: torch.ones(2)}])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(files.FileDamaged, match=r"x\.pt is a pipe or a device"):
        Tickets.from_checkpoints(tmp_path / "x.pt")


def test_views_that_are_conjugate_or_negative_are_read_as_they_look(tmp_path):
    value = torch.complex(torch.ones(2), torch.tensor([2.0, 3.0]))
    torch.save({"a": value.conj().imag, "b": value.clone().conj()}, tmp_path / "x.pt")
    read = state_dicts.load(tmp_path / "x.pt")
    assert read["a"].tolist() == [-2, -3] and not read["a"].is_neg() and not read["b"].is_conj()


# --- torch.nn.utils.prune ---------------------------------------------------------------------------------------------


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


def test_to_prune_refuses_another_network(tickets):
    with pytest.raises(ValueError, match=r"another network than the model: '0\.weight' has shape"):
        tickets[1].to_prune(nn.Sequential(nn.Linear(2, 2, bias=False), *list(make_network())[1:]))


# --- torchvision and timm ---------------------------------------------------------------------------------------------


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


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_file_that_would_have_to_be_unpickled_is_named(tmp_path):
    torch.save(make_network(), tmp_path / "module.pt")
    with pytest.raises(
        files.FileDamaged, match=r"module\.pt holds a torch\.nn\S+Sequential, and unpickling it"
    ) as error:
        state_dicts.load(tmp_path / "module.pt")
    assert len(str(error.value).splitlines()) == 1


def test_unpickling_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"state_dict": make_network().state_dict(), "args": Evil()}, tmp_path / "0.pt")
    with pytest.raises(files.FileDamaged, match=r"0\.pt holds a posix\.mkdir"):
        Tickets.from_checkpoints(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(files.FileDamaged, match=name):
        Tickets.from_checkpoints(tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {}}, {"epoch": 3}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(files.FileDamaged, match=r"x\.pt holds no state dict"):
        Tickets.from_checkpoints(tmp_path)


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


def test_importing_loads_no_optional_package():
    code = "import sys, lpk, lpk.models; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
