"""BatchNorm layers, and what their statistics need."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var")


def batchnorms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """BatchNorm layers that keep running statistics, with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield path, module


def check_batch(layer: str, samples: int, values: int) -> None:
    """Raises ValueError where a batch of this many samples gives BatchNorm one value for each channel."""
    if values == 1:
        raise ValueError(
            f"calibration: a batch of {samples} gives {layer} one value for each channel, whose variance can't be "
            "estimated; pass more calibration samples, or a larger batch_size"
        )
