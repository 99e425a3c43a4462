"""A run in TensorBoard: the hooks of lpk.Trainer, lpk.imp and lpk.pool, each a few lines.

    pip install tensorboard
    python examples/tensorboard_hooks.py runs/tensorboard
    tensorboard --logdir runs/tensorboard

The file is not called tensorboard.py, which Python would import in the package's place.

Four tickets of scikit-learn's handwritten digits are trained and pooled, within a minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol

import torch

import lpk
from lpk import data, models


class Writer(Protocol):
    """What of torch.utils.tensorboard.SummaryWriter is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def add_histogram(self, tag: str, values: torch.Tensor, global_step: int) -> None: ...


class Board:
    """Writes what the hooks tell: epochs one after the other, rounds and their weights, and each target's steps."""

    def __init__(self, writer: Writer, epochs: int, rewind: int) -> None:
        self.writer = writer
        self.epochs, self.rewind = epochs, rewind

    def on_epoch(self, event: lpk.EpochEvent) -> None:
        done = event.round * (self.epochs - self.rewind) + event.epoch  # a round starts from the rewind epoch again
        self.writer.add_scalar("epoch/loss", event.loss, done)
        self.writer.add_scalar("epoch/learning rate", event.lr, done)
        if event.accuracy is not None:
            self.writer.add_scalar("epoch/validation accuracy", event.accuracy, done)

    def on_round(self, event: lpk.RoundEvent) -> None:
        self.writer.add_scalar("round/density", event.density, event.round)
        self.writer.add_scalar("round/seconds", event.seconds, event.round)
        for name, value in event.metrics.items():
            self.writer.add_scalar(f"round/{name}", value, event.round)
        remaining = event.ticket.flat.weights[event.ticket.mask]
        self.writer.add_histogram("round/remaining weights", remaining, event.round)

    def on_step(self, event: lpk.StepEvent) -> None:
        self.writer.add_scalar(f"pool/round {event.target}", event.best, event.step)


def run(writer: Writer, *, train: int, epochs: int, rounds: int, progress: bool = True) -> list[lpk.Pooled]:
    """Trains tickets and pools every one of them, watched by the writer."""
    digits = data.load("digits", validation=300, train=train)
    torch.manual_seed(0)
    model = models.build("small-resnet", classes=digits.classes, shape=digits.shape, widths=[8, 16])
    board = Board(writer, epochs, rewind=1)
    recipe = lpk.Recipe(epochs=epochs, batch_size=64, milestones=(epochs - 1,))
    trainer = lpk.Trainer(digits.train, recipe, validation=digits.validation, on_epoch=board.on_epoch)
    tickets = lpk.imp(
        model, trainer, epochs=epochs, rounds=rounds, rewind=1, seed=0, on_round=board.on_round, progress=progress
    )
    return lpk.pool(
        tickets,
        model=model,
        validation=digits.validation.loader(100),
        calibration=digits.train.take(min(200, train)).loader(100),
        on_step=board.on_step,
        progress=progress,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="where TensorBoard's files go")
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="training samples")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of each round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of pruning")
    options = parser.parse_args(arguments)

    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(options.directory) as writer:
        for pooled in run(writer, train=options.train, epochs=options.epochs, rounds=options.rounds):
            print(pooled)


if __name__ == "__main__":
    main()
