"""The paper's training recipe: SGD with momentum and a step schedule that is rewound with the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpk.pruning.recipe import Recipe, stream
from lpk.pruning.step import BACKENDS, Step

if TYPE_CHECKING:
    from lpk.data.feed import Feed
    from lpk.data.splits import Split


class Trainer:
    """Trains a classifier from one epoch to another: what `lpk.imp` takes as `train`.

    The order of the samples and their augmentation depend on the seed, the round and the epoch alone, so that an
    interrupted run goes on as if nothing had happened. On a CPU it is then the same to the bit; on a GPU, too, where
    torch.use_deterministic_algorithms(True) is set, and nearly so without.

    On a GPU the samples lie there as they are stored, where they fit, and a step is recorded as a CUDA graph, which is
    replayed from then on.

    Args:
        train: the training samples.
        recipe: hyperparameters.
        seed: of the order of the samples and their augmentation.
        augment: whether the split's augmentation is used.
        backend: "torch": steps are called one by one. "graph": they are replayed; where that is not possible, training
            raises ValueError. None: they are replayed where that is possible: on a GPU, with a network on one device
            whose modules do nothing in Python that depends on the step, and have no hooks of others.

    Attributes:
        graph_problem: why the last call's steps were not replayed; None where they were.

    Raises ValueError for another backend.
    """

    def __init__(
        self,
        train: Split,
        recipe: Recipe,
        *,
        seed: int = 0,
        augment: bool = False,
        backend: str | None = None,
    ) -> None:
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(map(repr, BACKENDS))}, or None")
        self.train = train
        self.recipe = recipe
        self.seed = seed
        self.augment = augment
        self.backend = backend
        self.round = 0
        self.graph_problem: str | None = None
        self._momentum: dict[int, Tensor] = {}
        self._feed: Feed | None = None
        self._fed: tuple[Any, ...] = ()  # what it was made of
        self._step: Step | None = None

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

    def __call__(self, model: nn.Module, start: int, stop: int) -> None:
        """Trains from epoch `start` to epoch `stop`. Raises RuntimeError where the loss is no longer finite."""
        recipe = self.recipe
        model.train()
        feed, step = self._prepared(model)
        for epoch in range(start, stop):
            step.total.zero_()
            inputs = feed.epoch(stream(self.seed, "samples", self.round, epoch))
            for i, of_step in enumerate(inputs, 1):
                step(recipe.lr_at(epoch, i / feed.steps), *of_step)
            if not torch.isfinite(step.total):
                raise RuntimeError(
                    f"the loss is {float(step.total)} in round {self.round}, epoch {epoch}: a lower learning rate may "
                    "help"
                )
        self._momentum = step.momentum()
        self.graph_problem = step.graph_problem
        model.eval()

    def _prepared(self, model: nn.Module) -> tuple[Feed, Step]:
        """The samples on the model's device, and a step that trains it: those of the last call where they still fit."""
        from lpk.data.feed import feed  # here: it brings torchvision

        device = next(p for p in model.parameters() if p.requires_grad).device
        options = device, self.recipe.batch_size, self.augment
        if self._feed is None or self._fed[0] is not self.train or self._fed[1] != options:
            self._step = self._feed = None  # their memory is needed
            self._feed = feed(self.train, device, self.recipe.batch_size, augment=self.augment)
            self._fed = self.train, options
        asked = model, self._feed.batch, self.recipe
        if self._step is None or not self._step.fits(*asked, self.backend):
            self._step = Step(*asked, self._momentum, self.backend)
        return self._feed, self._step
