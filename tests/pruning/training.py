"""What lpk.imp trains in its tests: small images, a trainer of them, and interruptions."""

import itertools

import torch

from lpk.data import splits
from lpk.pruning.recipe import Recipe
from lpk.pruning.train import Trainer
from tests.conftest import make_images

OPTIONS = {"epochs": 3, "rounds": 3, "rewind": 1, "seed": 5, "progress": False}


def make_trainer(*, backend=None, **recipe) -> Trainer:
    images, labels = make_images(96, seed=1)
    stored = ((images - images.min()) / (images.max() - images.min()) * 255).to(torch.uint8)
    split = splits.MemorySplit(stored, labels, mean=(0.5,), std=(0.2,), augmentation="none")
    recipe = Recipe(**{"epochs": 3, "batch_size": 32, "lr": 0.05, "milestones": (2,), **recipe})
    return Trainer(split, recipe, seed=3, backend=backend)


class Stop(BaseException):
    """An interruption."""


def stopping(train, at):
    """`train`, whose call `at`, counted from 0, raises Stop in place of training. Of a trainer it is another one."""
    calls = itertools.count()

    def check():
        if next(calls) == at:
            raise Stop

    class Stopping(Trainer):
        def __call__(self, model, start, stop):
            check()
            super().__call__(model, start, stop)

    def stopped(model, start, stop):
        check()
        train(model, start, stop)

    return Stopping(train.train, train.recipe, seed=3) if isinstance(train, Trainer) else stopped
