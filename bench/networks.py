"""The networks that bench.sparse and bench.zoo run, by name: untrained, but alive.

resnet18 vgg16 ...                      lpk's own (lpk.models), 32 x 32 pixels
torchvision/resnet50  timm/levit_128    a classifier of these libraries, 224 x 224 pixels, 1,000 classes; a plain name
                                        is the first's that has it, of lpk, torchvision and timm
bert-base                               transformers' BertModel as BERT-base is configured; 128 tokens, integers
encoder-base                            torch.nn.TransformerEncoder of that size; 128 tokens, float32 [B, 128, 768]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lpk import extras, models
from lpk.networks.batchnorm import batchnorms
from lpk.networks.prunable import CONVOLUTIONS, prunable_names

TOKENS = ("bert-base", "encoder-base")
LENGTH, WIDTH, HEADS, HIDDEN, DEPTH, WORDS = 128, 768, 12, 3072, 12, 30522  # of both
OWN_SIZE, SIZE = 32, 224
LIBRARIES = ("torchvision", "timm")
QUIET = 1e-4  # of the mean variance of a layer's channels, below which one is taken to be the same for all inputs


def full_name(name: str) -> str:
    """The name with its library: "resnet50" is torchvision/resnet50. Raises ValueError for one that nobody has, and
    ImportError where a library is named that is not installed."""
    name = name.replace(":", "/", 1)
    if name.startswith("timm/"):
        extras.need(f"the network {name}", "timm")
    for known in (name, *(f"{library}/{name}" for library in LIBRARIES)):
        if known in TOKENS or known in models.NAMES or _is_theirs(known):
            return known
    raise ValueError(
        f"there is no network {name!r}: {', '.join((*models.NAMES, *TOKENS))}, torchvision/NAME and timm/NAME are known"
    )


def _is_theirs(name: str) -> bool:
    """Whether it is the name of a library that is installed, and of a classifier there."""
    library, _, theirs = name.partition("/")
    if library == "torchvision":
        from torchvision import models as classifiers

        return theirs in classifiers.list_models(module=classifiers)
    if library == "timm" and find_spec("timm") is not None:
        import timm

        return bool(timm.is_model(theirs))
    return False


def described(name: str, size: int | None) -> dict[str, Any]:
    """The arguments of `build` for a full name. size: of its images, if it reads any, in pixels; None: the usual."""
    if name in TOKENS:
        return {"name": name, "shape": (LENGTH,) if name == "bert-base" else (LENGTH, WIDTH)}
    own = name in models.NAMES
    size = size or (OWN_SIZE if own else _fixed_size(name) or SIZE)
    return {"name": name, "classes": 10 if own else 1000, "shape": (3, size, size)}


def _fixed_size(name: str) -> int | None:
    """Of the images that a network of timm's is made for, where it has to be told of others."""
    library, _, theirs = name.partition("/")
    if library != "timm":
        return None
    import timm

    known = timm.get_pretrained_cfg(theirs)
    return int(known.input_size[-1]) if known is not None and known.fixed_input_size else None


def build(network: Mapping[str, Any]) -> nn.Module:
    """The network in evaluation mode, as it is initialised from seed 0."""
    torch.manual_seed(0)
    if network["name"] == "bert-base":
        model = _bert()
    elif network["name"] == "encoder-base":
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, activation="gelu", batch_first=True)
        model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    elif _fixed_size(network["name"]) not in (None, network["shape"][-1]):
        model = _resized(**network)
    else:
        model = models.build(**network)
    return model.eval().requires_grad_(False)


def _bert() -> nn.Module:
    import transformers

    model: nn.Module = transformers.BertModel(transformers.BertConfig())
    return model


def _resized(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": classes, "img_size": shape[-1]}
    model: nn.Module = timm.create_model(name.partition("/")[2], pretrained=False, **options)
    return model


def inputs(network: Mapping[str, Any], batch: int) -> Tensor:
    """Images, tokens' numbers or features [batch, *shape] from seed 0."""
    generator = torch.Generator().manual_seed(0)
    if network["name"] == "bert-base":
        return torch.randint(WORDS, (batch, *network["shape"]), generator=generator)
    return torch.randn(batch, *network["shape"], generator=generator)


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returns: itself, or of a tuple, a mapping or a dataclass."""
    found = next(_tensors(output), None)
    if found is None:
        raise TypeError(f"the model returned a {type(output).__name__} without a tensor")
    return found


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):  # transformers' outputs are mappings
        yield from _tensors(list(output.values()))
    elif dataclasses.is_dataclass(output):
        yield from _tensors([getattr(output, field.name) for field in dataclasses.fields(output)])
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


# --- what makes an untrained network a fair subject ---


def prunable(model: nn.Module) -> list[str]:
    """The weights that a recipe prunes, by name: lpk's prunable ones and the projections inside of attention."""
    inside = {
        f"{path}.in_proj_weight".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    }
    lpks = set(prunable_names(model))
    return [name for name in model.state_dict() if name in lpks or name in inside]


def first_convolution(model: nn.Module) -> str | None:
    """The weight that reads the images; None where there is no convolution."""
    paths = (path for path, module in model.named_modules() if isinstance(module, CONVOLUTIONS))
    path = next(paths, None)
    return None if path is None else f"{path}.weight".lstrip(".")


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Gives parameters that all have one value, scales of 0, 1 or 1e-5 and biases of 0, values of their own.

    As they are initialised, the branches of many networks change nothing, or next to nothing: an error in one would not
    be seen, and lpk would leave out the weights of a branch that is multiplied by 0.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if (
            not parameter.is_floating_point()
            or parameter.numel() == 0
            or not bool((parameter == parameter.max()).all())
        ):
            continue
        if re.search(r"bias(es|_table)?$|token$|pos|embed", name):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


@torch.no_grad()
def renew(model: nn.Module, examples: Tensor) -> None:
    """BatchNorm's statistics, where there are any, from these inputs."""
    layers = [layer for _, layer in batchnorms(model)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum, layer.training = 1.0, True
    if layers:
        model(examples)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum, layer.training = momentum, False


@torch.no_grad()
def soothe(model: nn.Module) -> None:
    """Gives channels that are the same for all inputs the variance that others of their layer have.

    Pruned at random, some channels read nothing: BatchNorm would divide their rounding by the root of its eps, and the
    next layer's that again, until two ways of computing the same differ in the first digit.
    """
    for _, layer in batchnorms(model):
        variance = layer.running_var
        assert variance is not None
        variance[variance < QUIET * variance.mean()] = variance.mean().clamp_min(layer.eps)


def check_alive(model: nn.Module, examples: Tensor) -> None:
    """Raises RuntimeError where there is nothing to compare."""
    with torch.inference_mode():
        output = first_tensor(model(examples))
    if not bool(output.isfinite().all()):
        raise RuntimeError("the pruned network returns infinity or NaN")
    if not float(output.std(0).max()) > 1e-5 * float(output.abs().max()):
        raise RuntimeError("the pruned network is dead: it returns the same for all inputs")
