"""BatchNorm calibration and accuracy of one candidate after another, on samples that are prepared once.

Accuracy is a count of correct predictions, at one fixed batch size (the last batch padded), so that it does not depend
on who asks. Calibration does what torch.optim.swa_utils.update_bn does: only the BatchNorm layers train, the statistics
of equal batches are averaged with equal weight, the variance is unbiased.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn

from lpk.flat import FlatModel, Layout, batchnorms

Batch = tuple[Tensor, Tensor]
Samples = Iterable[Batch] | Batch  # a DataLoader or the like, or (inputs, labels)

STATISTICS = ("recalibrate", "interpolate", "leave")
BATCH_SIZE = 125
MEMORY_BUDGET = 4 << 30  # bytes of prepared samples; what is larger is streamed from its loader again each time


class Prepared:
    """Samples in memory in the dtype they are stored in, or streamed where they exceed MEMORY_BUDGET.

    Raises ValueError for a source without samples, labels that don't match, and loaders that don't yield
    (inputs, labels).
    """

    def __init__(self, name: str, samples: Samples, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self.source: Iterable[Batch] | None = None
        self.inputs = self.labels = torch.empty(0)
        self.count = 0
        self._read([samples] if _is_pair(samples) else cast(Iterable[Batch], samples))
        if self.count == 0:
            raise ValueError(f"{name} has no samples")

    def _read(self, loader: Iterable[Batch]) -> None:
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        size = 0
        for batch in loader:
            if not _is_pair(batch):
                raise ValueError(
                    f"{self.name} yields {type(batch).__name__}; (inputs, labels) are needed, or pass `evaluate`"
                )
            self._check(*batch)
            self.count += len(batch[1])
            size += batch[0].numel() * batch[0].element_size()
            if size > MEMORY_BUDGET and not isinstance(loader, list):
                self.source, inputs, labels = loader, [], []
                continue
            inputs.append(batch[0])
            labels.append(batch[1])
        if self.source is None and inputs:
            self.inputs, self.labels = (
                (inputs[0], labels[0]) if len(inputs) == 1 else (torch.cat(inputs), torch.cat(labels))
            )

    def _check(self, inputs: Tensor, labels: Tensor) -> None:
        if labels.dim() != 1 or labels.is_floating_point() or len(inputs) != len(labels):
            raise ValueError(
                f"{self.name}: inputs {tuple(inputs.shape)} with labels {tuple(labels.shape)} {labels.dtype}; "
                "one integer label for each input is needed, or pass `evaluate`"
            )

    def to(self, device: torch.device) -> None:
        self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)

    def reorder(self, order: Tensor) -> None:
        """Puts the samples into another order, where they are in memory."""
        if self.source is None:
            self.inputs, self.labels = self.inputs[order], self.labels[order]

    def batches(self) -> Iterator[Batch]:
        """Batches of `batch_size`; the last one is shorter where the count is no multiple of it."""
        if self.source is None:
            yield from zip(self.inputs.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
            return
        inputs, labels = torch.empty(0), torch.empty(0)
        for x, y in self.source:
            inputs, labels = (torch.cat((inputs, x)), torch.cat((labels, y))) if len(labels) else (x, y)
            while len(labels) >= self.batch_size:
                yield inputs[: self.batch_size], labels[: self.batch_size]
                inputs, labels = inputs[self.batch_size :], labels[self.batch_size :]
        if len(labels):
            yield inputs, labels


class Score(NamedTuple):
    """How a network did on all validation samples.

    Attributes:
        value: higher is better: the number of correct predictions, or what `evaluate` returned.
        margins: for each sample the logit of its label minus the largest other one, in the current order.
    """

    value: float
    margins: Tensor | None


class Evaluator:
    """Scores candidates that are written into `flat`.

    Args:
        model: copied, never changed.
        validation: samples that accuracy is counted on; needed unless `evaluate` is given.
        calibration: samples that renew BatchNorm's statistics.
        evaluate: model -> float, higher is better, instead of accuracy.
        statistics: "recalibrate", "interpolate" (like the other parameters) or "leave" (the target's stay).
        batch_size: of calibration and validation.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        validation: Samples | None = None,
        calibration: Samples | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        statistics: str = "recalibrate",
        batch_size: int = BATCH_SIZE,
        device: torch.device | None = None,
    ) -> None:
        if statistics not in STATISTICS:
            raise ValueError(f"statistics is {statistics!r}; one of {', '.join(STATISTICS)} is possible")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
        if (validation is None) == (evaluate is None):
            raise ValueError("pass either `validation` samples or an `evaluate` function")
        device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
        self.flat = FlatModel(model, layout, device)
        self.device = device
        self.batch_size = batch_size
        self.evaluate = evaluate
        self.forward_samples = 0
        self.validation = None if validation is None else Prepared("validation", validation, batch_size)
        self.calibration = None if calibration is None else Prepared("calibration", calibration, batch_size)
        for prepared in (self.validation, self.calibration):
            if prepared is not None:
                prepared.to(device)
        self.batchnorms = [module for _, module in batchnorms(self.flat.model)]
        if self.batchnorms and calibration is None and statistics == "recalibrate":
            warnings.warn(
                "no calibration samples: BatchNorm's statistics are interpolated like the other parameters, which "
                "usually costs accuracy; pass calibration=, a few hundred training samples",
                stacklevel=3,
            )
            statistics = "interpolate"
        self.statistics = statistics

    @property
    def total(self) -> int | None:
        """The number of validation samples; None where `evaluate` scores."""
        return None if self.validation is None else self.validation.count

    def calibrate(self) -> None:
        """Estimates BatchNorm's statistics for the network in `flat` from the calibration samples."""
        if self.statistics != "recalibrate" or not self.batchnorms or self.calibration is None:
            return
        with _averaging(self.batchnorms), torch.inference_mode():
            for inputs in self._calibration_batches(self.calibration):
                self.flat.model(self._prepare(inputs))
                self.forward_samples += len(inputs)
        self.flat.read()

    def score(self, errors_allowed: float = math.inf) -> Score | None:
        """Scores the network in `flat`; None as soon as it makes more errors than allowed."""
        if self.evaluate is not None:
            with torch.no_grad():
                return Score(float(self.evaluate(self.flat.model)), None)
        assert self.validation is not None
        errors, margins = 0, []
        with torch.inference_mode():
            for inputs, labels in self.validation.batches():
                logits = self._logits(inputs)
                errors += int((logits.argmax(1) != labels).sum())
                if errors > errors_allowed:
                    return None
                margins.append(_margins(logits, labels))
        return Score(self.validation.count - errors, torch.cat(margins))

    def hardest_first(self, score: Score) -> None:
        """Orders the validation samples by the margins of a network scored in full: its errors, and what it is least
        sure of, come first. A similar network then shows its errors early."""
        if score.margins is not None and self.validation is not None:
            self.validation.reorder(torch.argsort(score.margins, stable=True))

    def _logits(self, inputs: Tensor) -> Tensor:
        """Predictions of one batch [B, classes], computed at the full batch size."""
        count = len(inputs)
        if count < self.batch_size:
            inputs = torch.cat((inputs, inputs[-1:].expand(self.batch_size - count, *inputs.shape[1:])))
        logits = self.flat.model(self._prepare(inputs))
        self.forward_samples += self.batch_size
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != self.batch_size:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model returned {shape}; logits [{self.batch_size}, classes] are needed")
        return logits[:count]

    def _prepare(self, inputs: Tensor) -> Tensor:
        dtype = self.flat.layout.dtype if inputs.is_floating_point() else inputs.dtype
        inputs = inputs.to(self.device, dtype)
        return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs

    def _calibration_batches(self, samples: Prepared) -> Iterator[Tensor]:
        """Batches of equal size: a shorter last one is left out, unless it is the only one."""
        for i, (inputs, _) in enumerate(samples.batches()):
            if len(inputs) == self.batch_size or i == 0:
                yield inputs


@contextmanager
def _averaging(layers: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """BatchNorm layers that train, averaging the statistics of the batches they see; counters are put back."""
    saved = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0)
        layer.momentum = None
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=layer.running_mean.device)
        layer.training = True
    try:
        yield
    finally:
        for layer, (momentum, tracked) in zip(layers, saved, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked
            layer.training = False


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(1)


def _is_pair(batch: object) -> TypeGuard[Batch]:
    return isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)


# --- accuracy on test samples, and whether a gain is more than luck ---------------------------------------------------


def correct_predictions(
    model: nn.Module, samples: Samples, *, batch_size: int = BATCH_SIZE, device: torch.device | None = None
) -> Tensor:
    """Which samples a model predicts correctly, bool [N], in their order. The model is left in its mode."""
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    correct = []
    try:
        with torch.inference_mode():
            for inputs, labels in Prepared("samples", samples, batch_size).batches():
                inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
                correct.append((model(inputs.to(device)).argmax(1) == labels.to(device)).cpu())
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
