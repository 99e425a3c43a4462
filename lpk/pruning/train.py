"""The paper's training recipe: SGD with momentum and a step schedule that is rewound with the weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpk.distributed import mean_over_ranks, part_of
from lpk.events import EpochEvent
from lpk.pruning.recipe import Recipe, stream
from lpk.pruning.step import BACKENDS, Step

if TYPE_CHECKING:
    from lpk.data.feed import Feed
    from lpk.data.splits import Split

LOG = logging.getLogger(__name__)


class Trainer:
    """Trains a classifier from one epoch to another: what `lpk.imp` takes as `train`.

    The order of the samples and their augmentation depend on the seed, the round and the epoch alone, so that an
    interrupted run goes on as if nothing had happened. On a CPU it is then the same to the bit; on a GPU, too, where
    torch.use_deterministic_algorithms(True) is set, and nearly so without.

    On a GPU the samples lie there as they are stored, where they fit, and a step is recorded as a CUDA graph, which is
    replayed from then on.

    A network in torch.nn.parallel.DistributedDataParallel is trained by all of its processes: the recipe's batches are
    what they take together, in the order that one process would take them, each its part (docs/distributed.md).

    Args:
        train: the training samples.
        recipe: hyperparameters.
        seed: of the order of the samples and their augmentation.
        augment: whether the split's augmentation is used.
        backend: "torch": steps are called one by one. "graph": they are replayed; where that is not possible, training
            raises ValueError. None: they are replayed where that is possible: on a GPU, with a network on one device
            whose modules do nothing in Python that depends on the step, and have no hooks of others.
        validation: samples on which the network is evaluated after each epoch, all of them, for `on_epoch` and for what
            a call returns. Training is the same to the bit with and without.
        on_epoch: called with a `lpk.EpochEvent` after each epoch. What it raises ends training.

    Attributes:
        graph_problem: why the last call's steps were not replayed; None where they were.

    Raises ValueError for another backend, and for validation samples of which there are none.
    """

    def __init__(
        self,
        train: Split,
        recipe: Recipe,
        *,
        seed: int = 0,
        augment: bool = False,
        backend: str | None = None,
        validation: Split | None = None,
        on_epoch: Callable[[EpochEvent], object] | None = None,
    ) -> None:
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(map(repr, BACKENDS))}, or None")
        if validation is not None and len(validation) == 0:
            raise ValueError("validation has no samples; leave it out, or give some")
        self.train = train
        self.recipe = recipe
        self.seed = seed
        self.augment = augment
        self.backend = backend
        self.validation = validation
        self.on_epoch = on_epoch
        self.round = 0
        self.graph_problem: str | None = None
        self._momentum: dict[int, Tensor] = {}
        self._feed: Feed | None = None
        self._fed: tuple[Any, ...] = ()  # what it was made of
        self._step: Step | None = None
        self._held_out: Feed | None = None
        self._held_out_of: tuple[Any, ...] = ()

    def start_round(self, round: int) -> None:
        """The optimizer's state starts empty; the schedule's position follows from the epoch."""
        self.round = round
        self._momentum = {}
        self._step = None

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be known to go on at the next epoch: the momentum buffers, by the position of the parameter among
        those that are trained."""
        return {str(i): buffer for i, buffer in self._momentum.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._momentum = {int(i): buffer for i, buffer in state.items()}
        self._step = None

    def __call__(self, model: nn.Module, start: int, stop: int) -> dict[str, float]:
        """Trains from epoch `start` to epoch `stop`. Raises RuntimeError where the loss is no longer finite.

        Returns the last epoch's "loss" and, with validation samples, "validation accuracy": of no epochs, nothing.
        """
        recipe, metrics = self.recipe, {}
        model.train()
        feed, step = self._prepared(model)
        part, count, size = part_of(model), len(self.train), recipe.batch_size
        for epoch in range(start, stop):
            began = time.perf_counter()
            step.total.zero_()
            inputs = feed.epoch(stream(self.seed, "samples", self.round, epoch))
            for i, of_step in enumerate(inputs, 1):
                if part.count > 1:
                    step.weight = part.weight(min(size, count - (i - 1) * size))
                step(recipe.lr_at(epoch, i / feed.steps), *of_step)
            total = float(mean_over_ranks(step.total, model))  # waits for the device, once in an epoch
            if not math.isfinite(total):
                raise RuntimeError(
                    f"the loss is {total} in round {self.round}, epoch {epoch}: a lower learning rate may help"
                )
            seconds, accuracy = time.perf_counter() - began, None
            metrics = {"loss": total / feed.steps}
            if self.validation is not None:
                metrics["validation accuracy"] = accuracy = self._accuracy(model, self.validation)
            event = EpochEvent(
                round=self.round,
                epoch=epoch + 1,
                loss=metrics["loss"],
                lr=recipe.lr_at(epoch, 1.0),
                seconds=seconds,
                accuracy=accuracy,
            )
            LOG.debug("%s", event)
            if self.on_epoch is not None:
                self.on_epoch(event)
        self._momentum = step.momentum()
        self.graph_problem = step.graph_problem
        model.eval()
        return metrics

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, validation: Split) -> float:
        """The share of correct predictions. The model is left in training mode."""
        from lpk.data.feed import feed

        device = next(model.parameters()).device
        asked = validation, device, self.recipe.batch_size
        if self._held_out is None or self._held_out_of[0] is not validation or self._held_out_of[1:] != asked[1:]:
            self._held_out, self._held_out_of = feed(*asked, augment=False), asked
        correct = torch.zeros((), dtype=torch.int64, device=device)
        model.eval()
        with torch.random.fork_rng(devices=()):  # a loader of the user's may draw from the stream that training uses
            for inputs in self._held_out.epoch(0):
                images, labels = self._held_out.batch(*inputs)
                with torch.autocast(device.type, torch.bfloat16) if self.recipe.autocast else nullcontext():
                    correct += (model(images).argmax(1) == labels).sum()
        model.train()
        return int(correct) / len(validation)

    def _prepared(self, model: nn.Module) -> tuple[Feed, Step]:
        """The samples on the model's device, and a step that trains it: those of the last call where they still fit."""
        from lpk.data.feed import feed  # here: it brings torchvision

        device = next(p for p in model.parameters() if p.requires_grad).device
        options = device, self.recipe.batch_size, self.augment, part_of(model)
        if self._feed is None or self._fed[0] is not self.train or self._fed[1] != options:
            self._step = self._feed = None  # their memory is needed
            self._feed = feed(self.train, device, self.recipe.batch_size, augment=self.augment, part=options[-1])
            self._fed = self.train, options
        asked = model, self._feed.batch, self.recipe
        if self._step is None or not self._step.fits(*asked, self.backend):
            self._step = Step(*asked, self._momentum, self.backend)
        return self._feed, self._step
