"""The paper's training recipe: SGD with momentum and a step schedule that is rewound with the weights."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lpk.pruning.recipe import Recipe, stream

if TYPE_CHECKING:
    from lpk.data.splits import Split


class Trainer:
    """Trains a classifier from one epoch to another: what `lpk.imp` takes as `train`.

    The order of the samples and their augmentation depend on the seed, the round and the epoch alone, so that an
    interrupted run goes on as if nothing had happened.

    Args:
        train: the training samples.
        recipe: hyperparameters.
        seed: of the order of the samples and their augmentation.
        augment: whether the split's augmentation is used.
    """

    def __init__(self, train: Split, recipe: Recipe, *, seed: int = 0, augment: bool = False) -> None:
        self.train = train
        self.recipe = recipe
        self.seed = seed
        self.augment = augment
        self.round = 0
        self._momentum: list[Tensor] = []

    def start_round(self, round: int) -> None:
        """The optimizer's state starts empty; the schedule's position follows from the epoch."""
        self.round = round
        self._momentum = []

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be known to go on at the next epoch: the momentum buffers."""
        return {str(i): buffer for i, buffer in enumerate(self._momentum)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._momentum = [state[str(i)] for i in range(len(state))]

    def __call__(self, model: nn.Module, start: int, stop: int) -> None:
        """Trains from epoch `start` to epoch `stop`. Raises RuntimeError where the loss is no longer finite."""
        recipe = self.recipe
        parameters = [p for p in model.parameters() if p.requires_grad]
        device = parameters[0].device
        optimizer = torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        for parameter, buffer in zip(parameters, self._momentum, strict=False):
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(device)
        precision = torch.autocast(device.type, torch.bfloat16) if recipe.autocast else nullcontext()
        steps = math.ceil(len(self.train) / recipe.batch_size)
        model.train()
        for epoch in range(start, stop):
            seed = stream(self.seed, "samples", self.round, epoch)
            loader = self.train.loader(recipe.batch_size, seed=seed, augment=self.augment)
            total = torch.zeros((), dtype=torch.float32, device=device)
            for step, (inputs, labels) in enumerate(loader):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr_at(epoch, (step + 1) / steps)
                inputs = inputs.to(device).contiguous(memory_format=torch.channels_last)
                with precision:
                    loss = nn.functional.cross_entropy(model(inputs), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            if not torch.isfinite(total):
                raise RuntimeError(
                    f"the loss is {float(total)} in round {self.round}, epoch {epoch}: a lower learning rate may help"
                )
        momentum = [optimizer.state[p].get("momentum_buffer") for p in parameters]
        self._momentum = [b for b in momentum if b is not None]
        model.eval()
