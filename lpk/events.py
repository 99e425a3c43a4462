"""What the hooks of lpk.imp, lpk.Trainer and lpk.pool are called with.

A hook is called in the thread that trains or searches, which goes on when it returns. What it raises ends the run; what
is stored by then is kept, and the same call goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpk.tickets.ticket import Ticket


@dataclass(frozen=True)
class RoundEvent:
    """A round of `lpk.imp` is trained, and its ticket stored: what `on_round` gets.

    Attributes:
        round: 0 is dense.
        rounds: the last one's number.
        density: weights remaining / prunable weights.
        keep: how many weights remain.
        seconds: that the round took in this call, of one that went on from an epoch only the rest.
        metrics: what the round's last call of `train` returned, as far as it is numbers: of `lpk.Trainer` "loss" and,
            where it was given validation samples, "validation accuracy".
        ticket: all of it, on the CPU. The model that `lpk.imp` was given still holds the same values.
    """

    round: int
    rounds: int
    density: float
    keep: int
    seconds: float
    metrics: Mapping[str, float]
    ticket: Ticket


@dataclass(frozen=True)
class EpochEvent:
    """An epoch of `lpk.Trainer` is over: what `on_epoch` gets.

    Attributes:
        round: 0 is dense.
        epoch: where training stands, counted from initialization: 1 after the first epoch.
        loss: the mean cross-entropy of the epoch's steps.
        lr: the learning rate that the epoch ended with.
        seconds: of training, without validation.
        accuracy: on the validation samples, as a fraction; None where the trainer was given none.
    """

    round: int
    epoch: int
    loss: float
    lr: float
    seconds: float
    accuracy: float | None


@dataclass(frozen=True)
class StepEvent:
    """A candidate of `lpk.pool` was tried: what `on_step` gets.

    Attributes:
        target: the round of the ticket to improve.
        step, steps: which candidate of the target's it was, from 1, and how many there are.
        candidate: its round.
        coefficient, accuracy, accepted: as in `lpk.Step`.
        best: the accuracy of the target's best network so far; of a method that scores only at its end, the ticket's.
        seconds: since the search for this target began.
    """

    target: int
    step: int
    steps: int
    candidate: int
    coefficient: float | None
    accuracy: float | None
    accepted: bool
    best: float
    seconds: float
