"""Accuracy on test samples, and whether a gain is more than luck."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpk.pooling.samples import Samples, Validation


def correct_predictions(
    model: nn.Module, samples: Samples, *, batch_size: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Which samples a model predicts correctly, bool [N], in their order. The model is left in its mode.

    batch_size: None: the loader's own, and lpk.pooling.samples.BATCH_SIZE at most.
    """
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    correct = []
    try:
        with torch.inference_mode():
            for inputs, labels in Validation(samples, batch_size, device).batches():
                inputs, labels = inputs.to(device), labels.to(device)
                inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
                correct.append((model(inputs).argmax(1) == labels).cpu())
    finally:
        model.train(training)
    return torch.cat(correct)


@dataclass(frozen=True)
class Gain:
    """A difference of accuracies with its confidence interval, as fractions."""

    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.gain:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def paired_gain(correct: Tensor, baseline: Tensor, *, z: float = 1.96) -> Gain:
    """The gain of one network over another on the same samples, with a paired normal (Wald) interval.

    Args:
        correct, baseline: which samples each predicts correctly, [N]; or [networks, N], whose mean gain is meant.
        z: the interval's half-width in standard errors; 1.96 is 95%.
    """
    difference = (correct.double() - baseline.double()).reshape(-1, correct.shape[-1]).mean(0)
    gain, error = float(difference.mean()), float(difference.std(correction=1)) / math.sqrt(len(difference))
    return Gain(gain, gain - z * error, gain + z * error)
