"""A ticket's round, trained again from where it began: with the same order of the samples, or with another."""

from __future__ import annotations

import torch

from lpk.events import EpochEvent
from lpk.experiments.subject import Subject
from lpk.networks.flat import Flat
from lpk.pruning.masking import kept_pruned
from lpk.pruning.precautions import load
from lpk.pruning.recipe import Recipe, stream
from lpk.pruning.resuming import REWIND, read_checkpoint
from lpk.pruning.train import Trainer
from lpk.schema import whole
from lpk.tickets.ticket import Ticket


def retrained(subject: Subject, target: int, *, seed: int, start: int) -> list[Flat]:
    """Trains the subnetwork of round `target` to the end of the round, under its mask.

    Args:
        seed: of the order of the samples; the run's own makes the ticket again, on a CPU to the bit.
        start: 0: from the initialization. Otherwise the epoch that the run's tickets were rewound to, from its weights.

    Returns:
        What is there after each epoch of the last learning rate, see `last_phase`; the last one is the trained network.
    """
    run, ticket, ends = subject.run, subject.tickets[target], []
    recipe, model = run.preset.train, run.model()
    if start:
        load(model, read_checkpoint(run.path / "tickets" / REWIND, ticket.layout, {"epoch": whole})[0])
    constant_from = recipe.epochs - last_phase(recipe, start)

    def after(event: EpochEvent) -> None:
        if event.epoch > constant_from:
            ends.append(Ticket.of(target, ticket.layout, model.state_dict(), ticket.mask).flat)

    trainer = Trainer(run.data.train, recipe, seed=seed, augment=run.preset.data.augment, on_epoch=after)
    trainer.start_round(target)
    with kept_pruned(model, ticket.layout, ticket.mask, lambda: None):
        for epoch in range(start, recipe.epochs):
            torch.manual_seed(stream(seed, "train", target, epoch))  # as lpk.imp does: a network may have dropout
            trainer(model, epoch, epoch + 1)
    return ends


def last_phase(recipe: Recipe, start: int) -> int:
    """How many epochs have the learning rate that the last one has, of those from `start` on."""
    return recipe.epochs - max(start, recipe.warmup, *(each for each in recipe.milestones if each < recipe.epochs))
