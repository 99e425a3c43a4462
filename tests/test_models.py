"""lpk.models: shapes, sizes and initialisation of the networks."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lpk import models


def convolution_weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_maps_images_to_classes(name: str, channels: int) -> None:
    model = models.build(name, classes=7, shape=(channels, 32, 32)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, 32, 32)).shape == (2, 7)


def test_resnet18_has_as_many_convolution_weights_as_counted_by_hand() -> None:
    first = 4 * 64 * 64 * 9  # two blocks of two 3x3 convolutions
    second = 64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128  # the last is the shortcut's 1x1 convolution
    by_hand = 3 * 64 * 9 + first + second * (1 + 4 + 16)  # twice the width, four times the weights
    model = models.build("resnet18", classes=10, shape=(3, 32, 32))
    assert convolution_weights(model) == by_hand == 11_159_232


def test_vgg16_has_thirteen_convolutions_and_one_linear_layer() -> None:
    model = models.build("vgg16", classes=10, shape=(3, 32, 32))
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == widths
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 13
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 10)]


def test_vgg16_says_that_images_are_too_small() -> None:
    with pytest.raises(ValueError, match="32 x 32"):
        models.build("vgg16", classes=10, shape=(1, 28, 28))


def test_resnet18_keeps_the_resolution_of_small_images_up_to_its_first_stage() -> None:
    model = models.build("resnet18", classes=10, shape=(3, 32, 32)).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("layer1", "layer4"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape)}))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert seen == {"layer1": (1, 64, 32, 32), "layer4": (1, 512, 4, 4)}


@pytest.mark.parametrize("depth", [18, 34])
def test_imagenet_networks_are_torchvisions(depth: int) -> None:
    torch.manual_seed(3)
    ours = models.build(f"imagenet-resnet{depth}", classes=1000, shape=(3, 224, 224)).state_dict()
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_small_resnet_follows_its_options() -> None:
    model = models.build("small-resnet", classes=10, shape=(1, 28, 28), widths=(4, 8), blocks=3, stem_stride=2)
    stages = [model.get_submodule("layer1"), model.get_submodule("layer2")]
    assert [len(list(stage.children())) for stage in stages] == [3, 3]
    by_hand = 1 * 4 * 9 + 6 * 4 * 4 * 9 + (4 * 8 * 9 + 5 * 8 * 8 * 9 + 4 * 8)
    assert convolution_weights(model) == by_hand
    seen: list[torch.Size] = []
    stages[1].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert seen == [torch.Size([1, 8, 7, 7])]


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "small-resnet"])
def test_convolutions_start_with_kaiming_fan_out(name: str) -> None:
    model = models.build(name, classes=10, shape=(3, 32, 32))
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", ["resnet18", "small-resnet", "mlp"])
def test_the_global_seed_decides_the_weights(name: str) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = models.build(name, classes=10, shape=(3, 8, 8))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_mlp_follows_hidden() -> None:
    model = models.build("mlp", classes=10, shape=(1, 28, 28))
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(300, 784), (100, 300), (10, 100)]
    linear = models.build("mlp", classes=10, shape=(1, 8, 8), hidden=())
    assert [tuple(p.shape) for p in linear.parameters()] == [(10, 64), (10,)]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError) as error:
        models.build("resnet50", classes=10, shape=(3, 32, 32))
    assert "resnet50" in str(error.value)
    assert all(name in str(error.value) for name in models.NAMES)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("resnet18", {"widths": (1,)}, "resnet18 has no option 'widths'"),
        ("mlp", {"depth": 3}, "has no option 'depth'; it has hidden"),
        ("small-resnet", {"widths": ()}, "widths is empty"),
        ("small-resnet", {"widths": (8, 0)}, r"widths is \(8, 0\)"),
        ("small-resnet", {"blocks": 0}, "blocks is 0"),
        ("small-resnet", {"stem_stride": 0}, "stem_stride is 0"),
        ("mlp", {"classes": 0}, "classes is 0"),
        ("mlp", {"shape": (1, 0, 8)}, "shape is"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.build(name, **{"classes": 10, "shape": (1, 32, 32), **arguments})


def test_option_types_tell_what_build_takes() -> None:
    expected = {"widths": tuple[int, ...], "blocks": int, "stem_stride": int}
    assert models.option_types("small-resnet") == expected
    assert models.option_types("vgg16") == {}


def test_torchvisions_networks_by_name() -> None:
    torch.manual_seed(3)
    ours = models.build("torchvision/mobilenet_v3_small", classes=7, shape=(3, 32, 32))
    torch.manual_seed(3)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=7)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert models.option_types("torchvision/resnet18") == {}


def test_timms_networks_by_name() -> None:
    pytest.importorskip("timm")
    model = models.build("timm/resnet10t", classes=7, shape=(1, 32, 32)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="timm has no model 'resnet9000'"):
        models.build("timm/resnet9000", classes=7, shape=(1, 32, 32))


def test_timm_missing_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"the model 'timm/resnet10t' needs timm: pip install 'lpk\[timm\]'"):
        models.build("timm/resnet10t", classes=7, shape=(1, 32, 32))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("torchvision/resnet9000", (3, 32, 32), "torchvision has no classifier 'resnet9000'"),
        ("torchvision/fcn_resnet50", (3, 32, 32), "torchvision has no classifier 'fcn_resnet50'"),
        ("torchvision/resnet18", (1, 32, 32), "images of 3 channels"),
        ("torchvision/", (3, 32, 32), "model is 'torchvision/'; it must be one of"),
        ("keras/resnet18", (3, 32, 32), "torchvision/NAME or timm/NAME"),
    ],
)
def test_a_librarys_wrong_name_is_named(name: str, shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.build(name, classes=7, shape=shape)


def test_importing_loads_no_optional_package() -> None:
    code = "import sys, lpk, lpk.models; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
