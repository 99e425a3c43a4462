"""What experiments measure: the tickets of one seed, and what is made of them, on the test samples."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lpk.directory import POOLS
from lpk.networks.flat import Flat
from lpk.pooling.evaluate import Evaluator
from lpk.pooling.interpolations import Interpolations
from lpk.pooling.pool import pool
from lpk.pooling.samples import Validation
from lpk.run import Run
from lpk.tickets import files
from lpk.tickets.directories import make_inside
from lpk.tickets.pooled import Pooled
from lpk.tickets.ticket import Ticket
from lpk.tickets.tickets import Tickets


class Prediction(NamedTuple):
    """What a network predicts: logits float32 [N, classes], beside the labels int64 [N]."""

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.classes == self.labels).double().mean())

    @property
    def loss(self) -> float:
        return float(nn.functional.cross_entropy(self.logits, self.labels))


class Subject:
    """The tickets of one seed.

    Attributes:
        run: their run directory.
        identity: of the tickets, in a few characters.
        root: where the data lie, see lpk.data.load.
    """

    def __init__(self, run: Run, tickets: Tickets, identity: str, root: Path | None = None) -> None:
        self.run = run
        self.tickets = tickets
        self.identity = identity
        self.root = root
        self.batch_size = run.preset.pool.batch_size
        make_inside(run.path / POOLS)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Its validation samples are the test samples: nothing is chosen here."""
        return Evaluator(
            self.run.model(),
            self.tickets.layout,
            validation=self.run.data.test.loader(self.batch_size),
            calibration=self.run.calibration().loader(self.batch_size),
            batch_size=self.batch_size,
        )

    def predict(self, network: Flat, samples: Validation | None = None) -> Prediction:
        """A network as it is, with its own BatchNorm statistics; samples: None for the test samples."""
        self.evaluator.flat.load(network.to(self.evaluator.device))
        self.evaluator.written()
        return Prediction(*self.evaluator.predict(samples))

    def calibrated(self, network: Flat) -> tuple[Prediction, int]:
        """A network with BatchNorm's statistics estimated again, and how many samples that took."""
        evaluator, before = self.evaluator, self.evaluator.forward_samples
        evaluator.flat.load(network.to(evaluator.device))
        evaluator.written()
        evaluator.calibrate()
        taken = evaluator.forward_samples - before
        return Prediction(*evaluator.predict()), taken

    def interpolate(self, best: Ticket, other: Ticket, alpha: float, keep: int | None = None) -> Prediction:
        """α·best + (1 − α)·other, pruned to `keep` weights where given and calibrated, as in a step of a pool."""
        evaluator, flat = self.evaluator, self.evaluator.flat
        a, b = (ticket.flat.to(evaluator.device) for ticket in (best, other))
        Interpolations(a, b, (alpha,), keep).write(0, weights=flat.weights, rest=flat.rest)
        evaluator.written()
        evaluator.calibrate()
        return Prediction(*evaluator.predict())

    def pool(self, target: int, **options: Any) -> Pooled:
        """lpk.pool for one target; validation samples pick. Algorithms 2 and 3 with the paper's own settings are
        stored, since several experiments ask for them."""
        path = self.run.path / POOLS / f"{options.get('method')}-round-{target:02d}-{self.identity}.safetensors"
        stored = options.keys() == {"method"}
        if stored and files.exists(path):
            return Pooled.load(path)
        pooled = pool(
            self.tickets,
            target,
            model=self.run.model(),
            validation=self.run.data.validation.loader(self.batch_size),
            calibration=self.run.calibration().loader(self.batch_size),
            batch_size=self.batch_size,
            progress=False,
            **options,
        )
        assert isinstance(pooled, Pooled)
        if stored:
            pooled.write(path)
        return pooled
