"""What bench.sparse runs: networks, pruned, and inputs for them.

magnitude   lpk's own networks at 32 x 32 pixels: trained briefly on Fashion-MNIST (once: build/sparse keeps the
            weights) and pruned by global magnitude; a batch renews BatchNorm's statistics, so that what is computed is
            alive
uniform     untrained weights (bench.networks); every prunable layer but the one that reads the images has the same
            density, by magnitude within the layer, as recipes do it. What remains is scaled to the length that all of a
            layer's weights had: a deep network without BatchNorm would die away
random      untrained weights under a mask drawn at random
RUN         the tickets of a run directory whose densities are nearest to those asked for
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import networks
from lpk import models, ops
from lpk.data import sets as data
from lpk.data.splits import MemorySplit
from lpk.networks.flat import Layout
from lpk.pooling.accuracy import correct_predictions
from lpk.pruning.recipe import Recipe
from lpk.pruning.train import Trainer
from lpk.run import Run
from lpk.tickets import files

MASKS = ("magnitude", "uniform", "random")
SHAPE = (3, 32, 32)  # of what is trained
SAMPLES = 256  # small images that BatchNorm's statistics are from, and that the networks then run on
LARGE_SAMPLES = 16  # likewise of large images, and of tokens
TRAINING = 6400  # samples an epoch
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=(1,))
RATES = {"vgg16": 0.01}  # where another learning rate is needed


class Subject(NamedTuple):
    """A pruned network. network: its arguments of networks.build; inputs: what it runs on [samples, ...]."""

    network: dict[str, Any]
    masks: str
    density: float
    model: nn.Module
    inputs: Tensor


def subjects(given: argparse.Namespace) -> Iterator[Subject]:
    """given: bench.sparse's arguments, which `check` has seen."""
    for masks in given.masks:
        if masks not in MASKS:
            yield from tickets(Path(masks), given.densities)
            continue
        for name in given.networks:
            network = networks.described(name, given.size)
            model, inputs = trained(network, given.weights) if masks == "magnitude" else untrained(network)
            yield from pruned(network, masks, model, inputs, given.densities)


def check(given: argparse.Namespace) -> None:
    """Writes the networks' names out. Raises ValueError where one is unknown, or can't be trained for its masks."""
    given.networks = [networks.full_name(name) for name in given.networks]
    for name in given.networks if "magnitude" in given.masks else []:
        if name not in models.NAMES or given.size not in (None, SHAPE[-1]):
            shape = networks.described(name, given.size)["shape"]
            raise ValueError(
                f"--masks magnitude needs trained weights, and {name} at {shape} is not trained here: "
                f"{', '.join(models.NAMES)} at {SHAPE} are; uniform and random take all"
            )


def pruned(
    network: dict[str, Any], masks: str, model: nn.Module, inputs: Tensor, densities: Sequence[float]
) -> Iterator[Subject]:
    for density in densities:
        sparse = copy.deepcopy(model)
        prune_layers(sparse, density) if masks == "uniform" else prune_globally(sparse, density, masks)
        networks.renew(sparse, inputs)
        if masks != "magnitude":
            networks.soothe(sparse)
        networks.check_alive(sparse, inputs)
        yield Subject(network, masks, density, sparse, inputs)


def uniform(network: dict[str, Any], density: float) -> Subject:
    """One network under the masks "uniform", without a copy."""
    model, inputs = untrained(network)
    prune_layers(model, density)
    networks.renew(model, inputs)
    networks.soothe(model)
    networks.check_alive(model, inputs)
    return Subject(network, "uniform", density, model, inputs)


def prune_globally(model: nn.Module, density: float, masks: str) -> None:
    layout = Layout.of_model(model)
    whole = layout.flatten(model.state_dict())
    scores = whole.weights if masks == "magnitude" else torch.rand(layout.n, generator=torch.Generator().manual_seed(0))
    mask = ops.magnitude_mask(scores, round(density * layout.n))
    model.load_state_dict(layout.unflatten(whole._replace(weights=whole.weights * mask)))


def prune_layers(model: nn.Module, density: float) -> None:
    """Every prunable layer but the one that reads the images."""
    state, spared = model.state_dict(), networks.first_convolution(model)
    for name in networks.prunable(model):
        if name != spared:
            weight = state[name]
            mask = ops.magnitude_mask(weight.flatten(), round(density * weight.numel())).view_as(weight)
            left = weight * mask
            weight.copy_(left * (weight.norm() / left.norm().clamp_min(1e-30)))


def untrained(network: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    model = networks.build(network)
    networks.enliven(model)
    small = len(network["shape"]) == 3 and network["shape"][-1] <= 64
    return model, networks.inputs(network, SAMPLES if small else LARGE_SAMPLES)


def trained(network: dict[str, Any], folder: Path) -> tuple[nn.Module, Tensor]:
    """A network trained for minutes, and images of the test set."""
    name = network["name"]
    found = data.load("fashion-mnist", validation=0, train=TRAINING)
    test = enlarged(found.test).take(SAMPLES).tensors()
    model, path = networks.build(network), folder / f"{name}.safetensors"
    recipe = dataclasses.replace(RECIPE, lr=RATES.get(name, RECIPE.lr))
    made_with = json.loads(json.dumps(network | {"samples": TRAINING} | dataclasses.asdict(recipe)))
    if not path.is_file() or files.load_tensors(path)[1] != made_with:
        files.make_directory(folder)
        began = time.perf_counter()
        model.requires_grad_(True).to(memory_format=torch.channels_last)
        Trainer(enlarged(found.train), recipe)(model, 0, recipe.epochs)
        accuracy = float(correct_predictions(model, test).float().mean())
        print(f"{name}: trained in {time.perf_counter() - began:.0f} s to {accuracy:.0%} test accuracy", flush=True)
        files.save_tensors(path, model.state_dict(), made_with)
        model = networks.build(network)
    model.load_state_dict(files.load_tensors(path)[0])
    return model, test[0]


def enlarged(split: Any) -> MemorySplit:
    """Grey images of any size as 32 x 32 pixels in three channels."""
    assert isinstance(split, MemorySplit)
    images = nn.functional.interpolate(split.images, SHAPE[1:]).expand(-1, SHAPE[0], -1, -1)
    return dataclasses.replace(split, images=images, mean=split.mean * SHAPE[0], std=split.std * SHAPE[0])


def tickets(path: Path, densities: Sequence[float]) -> Iterator[Subject]:
    """The tickets of a run, each once, on images of its test set."""
    with Run.open(path, device="cpu") as run:
        found, wanted = run.tickets(), run.preset.model
        images, _ = next(iter(run.data.test.loader(SAMPLES)))
        network = {"name": wanted.name, "classes": run.data.classes, "shape": run.data.shape, **wanted.options}
    nearest = [min(found, key=lambda ticket: abs(math.log(ticket.density / density))) for density in densities]
    for ticket in dict.fromkeys(nearest):
        model = networks.build(network)
        model.load_state_dict(ticket.state_dict)
        yield Subject(network, path.name, ticket.density, model, images)
