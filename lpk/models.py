"""Networks by name: lpk's own, torchvision's and timm's."""

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from lpk import choices, extras, schema

extras.need("lpk.models", "torchvision")

import torchvision
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3
from torchvision.models.vgg import cfgs, make_layers

Shape = tuple[int, int, int]  # (C, H, W) of one input


def build(name: str, *, classes: int, shape: Shape, **options: Any) -> nn.Module:
    """The network `name`, newly initialised from torch's global random state: one of NAMES, or torchvision/NAME or
    timm/NAME for a classifier of these libraries.

    classes: width of its output; shape: (C, H, W) of one input; options: those of `option_types(name)`.
    The module maps float32 [B, C, H, W] to [B, classes].
    ValueError: an unknown name or option, an option or a size below 1, images too small for the network.
    ImportError: timm is missing.
    """
    known = option_types(name)
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        close = choices.suggestion(unknown[0], known)
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}{close}")
    for key, value in {"classes": classes, "shape": shape, **options}.items():
        if any(size < 1 for size in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError(f"{key} is {value}; every size in it must be at least 1")
    return _network(name)(classes, shape, **options)


def option_types(name: str) -> dict[str, Any]:
    """What `build` takes for this network beside classes and shape, with types. ValueError: no such name."""
    parameters = inspect.signature(_network(name)).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def _network(name: str) -> Callable[..., nn.Module]:
    library, _, theirs = str(name).partition("/")
    if theirs and library in _LIBRARIES:
        return functools.partial(_LIBRARIES[library], theirs)
    if name not in NAMES:
        wrong, close = schema.shortened(name), choices.suggestion(name, NAMES)
        raise ValueError(
            f"model is {wrong}; it must be one of {', '.join(NAMES)}, torchvision/NAME or timm/NAME{close}"
        )
    return _NETWORKS[name]


def _torchvision(name: str, classes: int, shape: Shape) -> nn.Module:
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise ValueError(
            f"torchvision has no classifier {schema.shortened(name)}; torchvision.models.list_models() names them"
            f"{choices.suggestion(name, known)}"
        )
    if shape[0] != 3:
        raise ValueError(f"shape is {shape}; the networks of torchvision take images of 3 channels")
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model


def _timm(name: str, classes: int, shape: Shape) -> nn.Module:
    extras.need(f"the model {schema.shortened(f'timm/{name}')}", "timm")
    import timm

    if not timm.is_model(name):
        wrong, close = schema.shortened(name), choices.suggestion(name, timm.list_models())
        raise ValueError(f"timm has no model {wrong}; timm.list_models() names them{close}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0])
    return model


def _vgg16(classes: int, shape: Shape) -> nn.Module:
    """VGG-16 with BatchNorm for 32x32 images: one linear layer in place of torchvision's three."""
    channels, height, width = shape
    if min(height, width) < 32:
        raise ValueError(f"shape is {shape}; vgg16 halves an image five times and needs 32 x 32 pixels or more")
    features = make_layers(cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(channels, 64, kernel_size=3, padding=1)
    classifier = nn.Linear(512 * (height // 32) * (width // 32), classes)
    model = nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))
    nn.init.normal_(classifier.weight, 0, 0.01)
    nn.init.zeros_(classifier.bias)
    return _kaiming(model)


def _resnet18(classes: int, shape: Shape) -> nn.Module:
    """ResNet-18 for 32x32 images: a 3x3 stem of stride 1 and no pooling behind it."""
    model = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = conv3x3(shape[0], 64)
    model.maxpool = nn.Identity()
    return _kaiming(model)


def _imagenet_resnet18(classes: int, shape: Shape) -> nn.Module:
    return _with_channels(torchvision.models.resnet18(num_classes=classes), shape[0])


def _imagenet_resnet34(classes: int, shape: Shape) -> nn.Module:
    return _with_channels(torchvision.models.resnet34(num_classes=classes), shape[0])


def _with_channels(model: nn.Module, channels: int) -> nn.Module:
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        _kaiming(model)
    return model


def _small_resnet(
    classes: int,
    shape: Shape,
    *,
    widths: tuple[int, ...] = (16, 32, 64),
    blocks: int = 1,
    stem_stride: int = 1,
) -> nn.Module:
    """A residual network for CPUs: for each width a stage of `blocks` blocks, each but the first halving."""
    if not widths:
        raise ValueError("widths is empty; small-resnet needs at least one")
    stem = conv3x3(shape[0], widths[0], stem_stride)
    layers = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU(inplace=True))
    entering = widths[0]
    for stage, width in enumerate(widths, start=1):
        first = _residual(entering, width, stride=1 if stage == 1 else 2)
        layers[f"layer{stage}"] = nn.Sequential(first, *(_residual(width, width, 1) for _ in range(blocks - 1)))
        entering = width
    layers.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(entering, classes))
    return _kaiming(nn.Sequential(layers))


def _residual(entering: int, width: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or entering != width:
        shortcut = nn.Sequential(conv1x1(entering, width, stride), nn.BatchNorm2d(width))
    block: nn.Module = BasicBlock(entering, width, stride, shortcut)
    return block


def _mlp(classes: int, shape: Shape, *, hidden: tuple[int, ...] = (300, 100)) -> nn.Module:
    """A fully connected network; its default widths are LeNet-300-100's."""
    widths = (math.prod(shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for entering, width in zip(widths, hidden, strict=False):
        layers += [nn.Linear(entering, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def _kaiming(model: nn.Module) -> nn.Module:
    """torchvision's initialisation of convolutions (He et al. 2015, fan out); BatchNorm keeps its own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": _vgg16,
    "resnet18": _resnet18,
    "imagenet-resnet18": _imagenet_resnet18,
    "imagenet-resnet34": _imagenet_resnet34,
    "small-resnet": _small_resnet,
    "mlp": _mlp,
}
NAMES = tuple(_NETWORKS)
_LIBRARIES: dict[str, Callable[..., nn.Module]] = {"torchvision": _torchvision, "timm": _timm}
