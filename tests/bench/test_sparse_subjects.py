"""Which networks bench.sparse and bench.zoo run, and how they are pruned: each is alive."""

import dataclasses

import pytest
import torch

from bench import networks, sparse_subjects
from lpk import presets
from lpk.data import sets as data
from lpk.run import Run
from tests.bench.small import SMALL, Attention


@pytest.mark.parametrize("masks", ["magnitude", "random", "uniform"])
def test_pruned_networks_have_the_density_and_are_alive(masks):
    model, images = sparse_subjects.untrained(SMALL)
    images = images[:64]
    for subject in list(sparse_subjects.pruned(SMALL, masks, model, images, [1.0, 0.1])):
        convolutions = [m for m in subject.model.modules() if isinstance(m, torch.nn.Conv2d)]
        left = [int(layer.weight.count_nonzero()) for layer in convolutions]
        sizes = [layer.weight.numel() for layer in convolutions]
        if masks == "uniform":
            assert left == [sizes[0], *(round(subject.density * size) for size in sizes[1:])]
        else:
            assert sum(left) == round(subject.density * sum(sizes))
        if masks == "random" and subject.density < 1:
            assert all(abs(a / b - 0.1) < 0.06 for a, b in zip(left, sizes, strict=True))
        batchnorm = next(m for m in subject.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        entering = convolutions[0](images)
        torch.testing.assert_close(batchnorm.running_mean, entering.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        assert subject.model(images).std(0).min() > 1e-3  # other images, other outputs


def test_uniform_masks_keep_each_layers_largest_weights_and_its_length():
    model, images = sparse_subjects.untrained(SMALL)
    (subject,) = sparse_subjects.pruned(SMALL, "uniform", model, images, [0.1])
    whole, left = (m.layer2[0].conv1.weight.flatten() for m in (model, subject.model))
    kept = left != 0
    assert whole[kept].abs().min() > whole[~kept].abs().max()
    torch.testing.assert_close(left.norm(), whole.norm())


def test_attention_is_pruned_inside_and_no_branch_is_next_to_nothing():
    model = Attention().eval().requires_grad_(False)
    networks.enliven(model)
    assert model.scale.min() >= 0.5 and model.norm.bias.std() > 0.01
    assert networks.first_convolution(model) is None
    sparse_subjects.prune_layers(model, 0.25)
    assert (
        model.attention.in_proj_weight.count_nonzero() == 48 and model.attention.out_proj.weight.count_nonzero() == 16
    )
    assert model.head.weight.count_nonzero() == 24  # not pruned
    output = model(torch.randn(2, 5, 8))
    assert (
        networks.first_tensor(output) is output["logits"] and networks.first_tensor((1, [output])) is output["logits"]
    )
    with pytest.raises(TypeError, match="without a tensor"):
        networks.first_tensor((1, None))


def test_dead_networks_are_errors_and_constant_channels_no_noise():
    model, images = sparse_subjects.untrained(SMALL)
    convolution, batchnorm = model.conv1, model.bn1
    convolution.weight[:4] = 0
    networks.renew(model, images)
    assert (batchnorm.running_var[:4] == 0).all()
    before = batchnorm.running_var.clone()
    networks.soothe(model)
    assert (batchnorm.running_var[:4] > 0.5 * before.mean()).all() and torch.equal(
        batchnorm.running_var[4:], before[4:]
    )
    networks.check_alive(model, images)
    model.fc.weight.zero_()
    with pytest.raises(RuntimeError, match="the same for all inputs"):
        networks.check_alive(model, images)


@pytest.mark.parametrize(
    ("name", "known", "shape"),
    [
        ("resnet18", "resnet18", (3, 32, 32)),
        ("resnet50", "torchvision/resnet50", (3, 224, 224)),
        ("torchvision:resnet18", "torchvision/resnet18", (3, 224, 224)),
        ("bert-base", "bert-base", (128,)),
        ("encoder-base", "encoder-base", (128, 768)),
    ],
)
def test_networks_have_one_full_name_and_a_usual_size(name, known, shape):
    assert networks.full_name(name) == known and networks.described(known, None)["shape"] == shape
    if len(shape) == 3:
        assert networks.described(known, 64)["shape"] == (3, 64, 64)


def test_networks_of_timm_have_the_size_that_they_are_made_for():
    pytest.importorskip("timm")
    assert networks.full_name("timm:swinv2_tiny_window8_256") == "timm/swinv2_tiny_window8_256"
    assert networks.described("timm/swinv2_tiny_window8_256", None)["shape"] == (3, 256, 256)
    network = networks.described(networks.full_name("vit_tiny_patch16_224"), 32)
    assert networks.build(network)(networks.inputs(network, 2)).shape == (2, 1000)


def test_training_happens_once_on_enlarged_images(tmp_path, monkeypatch):
    digits = data.load("digits", validation=0, train=64)
    monkeypatch.setattr(sparse_subjects.data, "load", lambda *_, **__: digits)
    monkeypatch.setattr(sparse_subjects, "RECIPE", dataclasses.replace(sparse_subjects.RECIPE, epochs=1))
    model, images = sparse_subjects.trained(SMALL, tmp_path)
    assert images.shape == (sparse_subjects.SAMPLES, *sparse_subjects.SHAPE)
    torch.testing.assert_close(images[:, 0, ::4, ::4], digits.test.tensors()[0][: sparse_subjects.SAMPLES, 0])
    assert not torch.equal(model.conv1.weight, networks.build(SMALL).conv1.weight)
    monkeypatch.setattr(sparse_subjects, "Trainer", None)
    again, _ = sparse_subjects.trained(SMALL, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_tickets_of_a_run_are_the_nearest_each_once(tmp_path):
    preset = presets.load("digits")
    recipe = dataclasses.replace(preset.train, epochs=1, milestones=())
    short = dataclasses.replace(preset, train=recipe, imp=dataclasses.replace(preset.imp, rounds=2, rewind=0))
    with Run.create(tmp_path / "tiny", short, seed=0, device="cpu") as run:
        tickets = run.imp(progress=False)
    found = list(sparse_subjects.tickets(tmp_path / "tiny", [1.0, 0.7, 0.6, 0.01]))
    assert [subject.density for subject in found] == [1.0, tickets[2].density]
    assert found[1].masks == "tiny" and found[1].network["widths"] == (8, 16)
    state = tickets[2].state_dict
    assert all(torch.equal(value, state[name]) for name, value in found[1].model.state_dict().items())
