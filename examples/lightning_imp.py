"""Iterative magnitude pruning with Lightning: lpk.imp calls a Lightning Trainer for each leg of a round.

    pip install lightning
    python examples/lightning_imp.py runs/lightning

A leg is `train(model, start, stop)`: from initialization to the rewind epoch, or from there to the end of the round.
The network stays a plain module, and a LightningModule is made around it, so that each leg has a new optimizer and the
learning rates of its own epochs. Callbacks, loggers and validation loops are what they are elsewhere. What Lightning
logged last is returned, so that the progress bar shows it and `on_round` gets it.

Four tickets of scikit-learn's handwritten digits are trained, and the sparsest is pooled, within a minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lpk
from lpk import data, models

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Trains a network from epoch `start` on."""

    def __init__(self, network: nn.Module, recipe: lpk.Recipe, start: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.start = start  # Lightning counts the epochs of each fit from zero

    def training_step(self, batch: Batch, index: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        inputs, labels = batch
        correct = (self.network(inputs).argmax(1) == labels).float().mean()
        self.log("validation accuracy", correct, batch_size=len(labels))

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.network.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: recipe.lr_at(self.start + epoch, 0.0))
        return {"optimizer": optimizer, "lr_scheduler": rates}


class PrunedStayZero(pl.Callback):
    """A callback sees pruned weights as zeros after every step: a check, and the place for one of your own."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.zeros = [(weight, weight == 0) for weight in module.parameters() if weight.dim() > 1]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert not any(bool(weight[zero].any()) for weight, zero in self.zeros)


class Legs:
    """`train` of lpk.imp: a Lightning Trainer for each leg, and one log for all of them."""

    def __init__(self, recipe: lpk.Recipe, train: DataLoader, validation: DataLoader, directory: Path) -> None:
        self.recipe, self.train, self.validation = recipe, train, validation
        self.directory = directory
        self.legs = 0

    def __call__(self, network: nn.Module, start: int, stop: int) -> dict[str, float]:
        trainer = pl.Trainer(
            max_epochs=stop - start,
            accelerator="cpu",
            callbacks=[PrunedStayZero()],
            logger=CSVLogger(self.directory, name="", version=f"leg-{self.legs:02d}"),
            enable_checkpointing=False,  # lpk.imp stores the tickets
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(network, self.recipe, start), self.train, self.validation)
        self.legs += 1
        return {name: float(value) for name, value in trainer.callback_metrics.items()}


def main(arguments: Sequence[str] | None = None) -> lpk.Pooled:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", type=Path, help="of the tickets and Lightning's logs; the same again goes on there"
    )
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="training samples")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of each round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of pruning")
    options = parser.parse_args(arguments)

    digits = data.load("digits", validation=300, train=options.train)
    recipe = lpk.Recipe(epochs=options.epochs, batch_size=64, milestones=(options.epochs - 1,))
    torch.manual_seed(0)
    model = models.build("small-resnet", classes=digits.classes, shape=digits.shape, widths=[8, 16])
    samples, held_out = (list(zip(*split.tensors(), strict=True)) for split in (digits.train, digits.validation))
    validation = DataLoader(held_out, batch_size=100)
    legs = Legs(
        recipe, DataLoader(samples, batch_size=recipe.batch_size, shuffle=True), validation, options.directory / "logs"
    )
    tickets = lpk.imp(
        model,
        legs,
        epochs=recipe.epochs,
        rounds=options.rounds,
        rewind=1,
        seed=0,
        store=options.directory / "tickets",
        on_round=lambda event: print(f"round {event.round}: density {event.density:.3f}, {dict(event.metrics)}"),
    )
    calibration = DataLoader(samples[:200], batch_size=100)
    pooled = lpk.pool(tickets, len(tickets) - 1, model=model, validation=validation, calibration=calibration)
    print(pooled)
    return pooled


if __name__ == "__main__":
    main()
