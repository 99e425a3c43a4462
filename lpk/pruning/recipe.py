"""The paper's training recipe, and the seeds of its random numbers. Needs no PyTorch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lpk import schema

AUTOCASTS = ("bfloat16",)  # not float16, whose gradients would have to be scaled


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one round (Tables 4 and 5, which have the columns for momentum and weight decay exchanged).

    Attributes:
        epochs: of training, counted from initialization.
        milestones: epochs at whose start the learning rate is multiplied by `gamma`.
        warmup: epochs over which the learning rate grows linearly, step by step.
        autocast: "bfloat16": the forward pass and the loss compute in it where torch.autocast does; weights, gradients
            and the optimizer's step stay in float32. None: in the network's own dtype, float32, for which PyTorch's
            convolutions on a GPU take TF32 by default.

    Raises:
        ValueError: an `autocast` that is neither.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 0
    autocast: str | None = None

    def __post_init__(self) -> None:
        if self.autocast not in (None, *AUTOCASTS):
            possible = ", ".join(map(repr, AUTOCASTS))
            raise ValueError(
                f"autocast is {schema.shortened(self.autocast)}; {possible} is possible, or to leave it out (float32)"
            )

    def lr_at(self, epoch: int, progress: float) -> float:
        """The learning rate at `progress` in [0, 1) of an epoch: where the schedule stands, whatever was run before."""
        rate = self.lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        return rate * min(1.0, (epoch + progress) / self.warmup) if self.warmup else rate


def stream(seed: int, *names: str | int) -> int:
    """A seed for one purpose, derived from the run's seed: streams of different names are independent."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
