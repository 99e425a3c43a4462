"""BatchNorm calibration and accuracy of one candidate after another, on samples that are prepared once.

Accuracy is a count of correct predictions, at one fixed batch size (the last batch padded), so that it does not depend
on who asks. A model whose predictions depend on the other samples of a batch gets them in their own order, without
padding. Calibration does what torch.optim.swa_utils.update_bn does: only the BatchNorm layers train, the statistics
of equal batches are averaged with equal weight, the variance is unbiased. It stops when the statistics have settled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.pooling.backends import Backend, choose, mixes
from lpk.pooling.methods import CRITERIA
from lpk.pooling.samples import BATCH_SIZE, Calibration, Inputs, Samples, Validation

STATISTICS = ("recalibrate", "interpolate", "leave")
TOLERANCE = 0.02

# Losses are summed as integers, in units of 2^-20: the sum does not depend on the order of the samples.
LOSS_UNITS = 2.0**20
LARGEST_LOSS = 1000.0  # what a NaN counts as, too


class Score(NamedTuple):
    """How a network did on all validation samples.

    Attributes:
        value: higher is better: the number of correct predictions, minus the loss in units, or what `evaluate` said.
        accuracy: the share of correct predictions, or what `evaluate` returned.
        margins: for each sample the logit of its label minus the largest other one, in the current order.
    """

    value: float
    accuracy: float
    margins: Tensor | None


class Heat(NamedTuple):
    """The validation samples that stand first are a random draw.

    Attributes:
        drawn: how many there are; 0: none, nobody races.
        population: how many of the hardest samples they were drawn from.
        error: with what probability a network that makes no more errors than allowed may be dropped for them.
    """

    drawn: int = 0
    population: int = 0
    error: float = 0.0


class Evaluator:
    """Scores candidates that are written into `flat`.

    Args:
        model: copied, never changed.
        validation: samples that accuracy is counted on; needed unless `evaluate` is given.
        calibration: samples that renew BatchNorm's statistics; their labels, if there are any, are not looked at.
        evaluate: model -> float, higher is better, instead of the criterion.
        criterion: what counts against a network: "accuracy", its errors, or "loss", its cross-entropy.
        statistics: "recalibrate", "interpolate" (like the other parameters) or "leave" (the target's stay).
        tolerance: the standard error at which calibration stops, see `calibrate`; 0: it uses all samples.
        batch_size: of calibration and validation; None: each loader's own, and 128 at most, see lpk.samples.
        backend: what evaluates: "torch", "sparse" (the engine), or "auto" for the faster one.
        autocast: the dtype that PyTorch computes in where that is safe (torch.autocast); None: the model's own.

    Attributes:
        batch_size: of validation, by which counts are defined; of calibration where `evaluate` scores.
        forward_samples: how many samples went through the network.
        scored: how many networks were scored, whether or not to the end.
        validated: how many of the samples that went through it were validation samples.
        changed: entries that `evaluate` gave other values, which was undone; BatchNorm's statistics are not among them.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        validation: Samples | None = None,
        calibration: Inputs | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        criterion: str = "accuracy",
        statistics: str = "recalibrate",
        tolerance: float = TOLERANCE,
        batch_size: int | None = None,
        backend: str = "auto",
        autocast: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        if statistics not in STATISTICS:
            raise ValueError(f"statistics is {statistics!r}; one of {', '.join(STATISTICS)} is possible")
        if criterion not in CRITERIA:
            raise ValueError(f"criterion is {criterion!r}; one of {', '.join(CRITERIA)} is possible")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
        if not 0.0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; a number of at least 0 is needed")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast is {autocast}; torch.bfloat16, torch.float16 or None is possible")
        if (validation is None) == (evaluate is None):
            raise ValueError("pass either `validation` samples or an `evaluate` function")
        device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
        self.flat = FlatModel(model, layout, device)
        self.device = device
        self.tolerance = tolerance
        self.autocast = autocast
        self.evaluate = evaluate
        self.criterion = criterion
        self.forward_samples = self.validated = self.scored = 0
        self.changed: list[str] = []
        self.validation = None if validation is None else Validation(validation, batch_size, device)
        self.calibration = None if calibration is None else Calibration(calibration, batch_size, device)
        used = self.validation or self.calibration
        self.batch_size = batch_size or BATCH_SIZE if used is None else used.batch_size
        self.batchnorms = self.flat.batchnorms
        if self.batchnorms and self.calibration is None and statistics == "recalibrate":
            warnings.warn(
                "no calibration samples: BatchNorm's statistics are interpolated like the other parameters, which "
                "usually costs accuracy; pass calibration=, a few hundred training samples",
                stacklevel=3,
            )
            statistics = "interpolate"
        elif self.batchnorms and statistics == "recalibrate" and self.calibration and batch_size is None:
            self._check_calibration(self.calibration)
        self.statistics = statistics
        self._heat = Heat()
        self._generator = torch.Generator().manual_seed(0)  # of the heats' draws
        # What the validation samples are ordered by.
        self._margins = torch.zeros(self.total or 0, dtype=torch.float32, device="cpu")
        self._running = torch.nonzero(self.flat.statistics).squeeze(1)
        self._scale = _scales(self.flat)
        self.wanted = backend
        self._chosen: Backend | None = None
        self._mixes: bool | None = None  # whether predictions depend on the other samples of a batch

    @staticmethod
    def _check_calibration(calibration: Calibration) -> None:
        if calibration.has_small_batches:
            warnings.warn(
                f"calibration: batches of {calibration.batch_size}, as the loader has them, distort BatchNorm's "
                f"statistics; pass batch_size={BATCH_SIZE}, or {calibration.batch_size} where memory allows no more",
                stacklevel=4,
            )

    @property
    def backend(self) -> str:
        """What evaluates: "torch" or "sparse"; as wanted while nothing was evaluated."""
        return self.wanted if self._chosen is None else self._chosen.name

    @property
    def total(self) -> int | None:
        """The number of validation samples; None where `evaluate` scores."""
        return None if self.validation is None else self.validation.count

    @property
    def highest(self) -> float:
        """The value of a network without errors, or without loss."""
        return float(self.total or 0) if self.criterion == "accuracy" else 0.0

    def written(self, *, weights: bool = True) -> None:
        """To be called after `flat` was written to. weights: False: only BatchNorm's statistics were."""
        self.flat.written()
        if self._chosen is not None:
            self._chosen.changed(weights=weights)

    def calibrate(self) -> None:
        """Estimates BatchNorm's statistics for the network in `flat` from the calibration samples.

        Batch by batch, and no further once they have settled: from the second batch on, when the standard error of
        their mean over the batches, relative to the channel's standard deviation for a mean and to its variance for a
        variance, has a root mean square over all channels of at most `tolerance`. When that is depends on this network
        and the samples alone.

        Of a layer that a forward pass calls more than once (shared branches, heads) every call weighs the same, as in
        torch.optim.swa_utils.update_bn. A layer that none calls keeps its interpolated statistics: it has no others.

        Raises ValueError where a batch is too small for a variance.
        """
        if self.statistics != "recalibrate" or not self.batchnorms or self.calibration is None:
            return
        flat = self.flat
        mean = squares = torch.zeros(len(self._running), dtype=torch.float64, device=self.device)  # West 1979
        total = torch.zeros_like(mean)
        with torch.inference_mode():
            for count, inputs in enumerate(self.calibration.batches(), start=1):
                before = flat.rest[self._running]
                calls = self._network(inputs).measure(inputs)
                self.forward_samples += len(inputs)
                flat.read()
                batch = flat.rest[self._running]
                weight = self._weights(calls, batch != before)
                total = total + weight
                difference = batch.double() - mean
                mean = mean + difference * weight / total.clamp(min=1)
                squares = squares + weight * difference * (batch - mean)
                deviation = squares / total.clamp(min=1)
                if count > 1 and self.tolerance and self._error(mean, deviation, count) <= self.tolerance:
                    break
            flat.rest[self._running] = torch.where(total > 0, mean.to(flat.rest.dtype), flat.rest[self._running])
        self.written(weights=False)

    def _weights(self, calls: Mapping[_BatchNorm, int], changed: Tensor) -> Tensor:
        """How often each statistic was taken from a batch: as often as its layer was called, or once where a model
        computes with the statistics of a layer without calling it."""
        counts = [calls.get(layer, 0) for layer, _, _ in self.batchnorms]
        if all(count == 1 for count in counts):
            return torch.ones_like(changed, dtype=torch.float64)
        counted = torch.tensor(counts, dtype=torch.float64, device=self.device)[self._scale.layer]
        return torch.where(counted > 0, counted, changed.double())

    def _error(self, mean: Tensor, deviation: Tensor, count: int) -> float:
        """The standard error of the statistics' mean over `count` batches, relative, as calibrate says; deviation: the
        mean square difference from it."""
        variance = mean[self._scale.variance]
        scale = torch.where(self._scale.is_mean, variance, variance.square())
        relative = deviation / (count - 1) / scale
        return math.sqrt(float(torch.where(scale > 0, relative, 0.0).mean()))  # a dead channel has settled

    def score(self, most: float = math.inf) -> Score | None:
        """Scores the network in `flat`; None as soon as it makes more than `most` errors, or units of loss."""
        self.scored += 1
        if self.evaluate is not None:
            with torch.no_grad(), self.flat.lent() as changed:
                returned = self.evaluate(self.flat.model)
                try:
                    value = float(returned)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise TypeError(f"evaluate returned a {type(returned).__name__}; a number is needed") from error
            self.changed = self.changed or changed
            return Score(value, value, None)
        assert self.validation is not None
        errors = cost = 0
        logits, labels = [], []
        with torch.inference_mode():
            for inputs, batch_labels in self.validation.batches():
                batch_labels = batch_labels.to(self.device)
                logits.append(self._logits(self._network(inputs), inputs, self.batch_size))
                labels.append(batch_labels)
                errors += int((logits[-1].argmax(1) != batch_labels).sum())
                cost = errors if self.criterion == "accuracy" else cost + _loss_units(logits[-1], batch_labels)
                if cost > most or (len(logits) == 1 and self._loses(errors, most)):
                    return None
            accuracy = (self.validation.count - errors) / self.validation.count
            return Score(self.highest - cost, accuracy, _margins(torch.cat(logits), torch.cat(labels)))

    def predict(self, samples: Validation | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the network in `flat` [N, classes] and the samples' labels [N], on the CPU.

        Args:
            samples: in batches of their own size; None: the validation samples, in their current order.
        """
        samples = samples or self.validation
        assert samples is not None
        logits, labels = [], []
        with torch.inference_mode():
            for inputs, batch_labels in samples.batches():
                inputs = inputs.to(self.device)
                logits.append(self._logits(self._network(inputs), inputs, samples.batch_size).float().cpu())
                labels.append(batch_labels.cpu())
        return torch.cat(logits), torch.cat(labels)

    def hardest_first(self, score: Score) -> None:
        """Orders the validation samples by the margins of a network scored in full: its errors, and what it is least
        sure of, come first. A similar network then shows its errors early."""
        if score.margins is not None and not self._mixes:
            self._margins = score.margins
            self._reorder(torch.argsort(score.margins, stable=True))

    def draw_heat(self, errors_allowed: int, error: float) -> None:
        """Puts a batch first that is drawn at random from the hardest samples, twice as many as the errors allowed.

        `score` then drops a network for its errors on this batch if a network that makes no more than the errors
        allowed, all of them among those hardest samples, would make as many with probability `error` at most: the tail
        of a hypergeometric distribution. One that makes fewer in all is dropped more rarely still. This is one heat of
        a race (Maron and Moore 1993), with the exact tail in place of Hoeffding's bound.
        """
        validation = self.validation
        if validation is None or validation.source is not None or self._mixes:
            return
        ranked = torch.argsort(self._margins, stable=True)
        population = min(2 * errors_allowed, validation.count)
        drawn = min(self.batch_size, population)
        chosen = torch.randperm(population, generator=self._generator, device="cpu")[:drawn].to(ranked.device)
        behind = torch.ones(len(ranked), dtype=torch.bool, device=ranked.device)
        behind[chosen] = False
        self._reorder(torch.cat((ranked[chosen], ranked[behind])))
        self._heat = Heat(drawn, population, error)

    def _reorder(self, order: Tensor) -> None:
        assert self.validation is not None
        self.validation.reorder(order)
        self._margins = self._margins[order]
        self._heat = Heat()

    def _loses(self, errors: int, errors_allowed: float) -> bool:
        """Whether a network that makes `errors` in the first batch is out of the race."""
        drawn, population, error = self._heat
        if drawn < self.batch_size:
            return False
        return hypergeometric_tail(errors, population, int(min(errors_allowed, population)), drawn) <= error

    def _logits(self, network: Backend, inputs: Tensor, batch_size: int) -> Tensor:
        """Predictions of one batch [B, classes], computed at the full batch size unless they depend on each other."""
        count = len(inputs)
        if self._mixes is None and batch_size > 1:  # one alone may be all that memory has room for
            self._mixes = mixes(network, inputs)
        if count < batch_size and not self._mixes:
            inputs = torch.cat((inputs, inputs[-1:].expand(batch_size - count, *inputs.shape[1:])))
        logits = network(inputs)
        self.forward_samples += len(inputs)
        self.validated += len(inputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model returned {shape}; logits [{len(inputs)}, classes] are needed")
        if self.validation is not None and self.validation.largest >= logits.shape[1]:
            raise ValueError(
                f"validation holds the label {self.validation.largest}, but the model returned {logits.shape[1]} "
                "logits: one for each class is needed, or pass `evaluate`"
            )
        return logits[:count]

    def _network(self, inputs: Tensor) -> Backend:
        """What computes the network in `flat`, chosen when the first inputs are there."""
        if self._chosen is None:
            self._chosen = choose(self.flat.model, self.wanted, inputs, self.autocast)
        return self._chosen


class _Scales(NamedTuple):
    """For each running statistic whether it is a mean, which one is the variance of the same channel, and the number of
    its layer."""

    is_mean: Tensor
    variance: Tensor
    layer: Tensor


def _scales(flat: FlatModel) -> _Scales:
    position = (torch.cumsum(flat.statistics, 0) - 1).cpu()  # in the vector of statistics alone
    variance = torch.zeros(int(flat.statistics.sum()), dtype=torch.int64, device="cpu")
    is_mean, layer = torch.zeros_like(variance, dtype=torch.bool), torch.zeros_like(variance)
    for number, (_, mean, of_same) in enumerate(flat.batchnorms):
        is_mean[position[mean]] = True
        for span in (mean, of_same):
            variance[position[span]] = position[of_same]
            layer[position[span]] = number
    return _Scales(*(tensor.to(flat.rest.device) for tensor in (is_mean, variance, layer)))


def hypergeometric_tail(least: int, population: int, marked: int, drawn: int) -> float:
    """The probability that of `drawn` ones among `population`, `marked` of which are marked, at least `least` are."""
    ways = range(max(least, 0, drawn - (population - marked)), min(drawn, marked) + 1)
    return sum(math.comb(marked, k) * math.comb(population - marked, drawn - k) for k in ways) / math.comb(
        population, drawn
    )


def _loss_units(logits: Tensor, labels: Tensor) -> int:
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none").double()
    return int((loss.nan_to_num(nan=LARGEST_LOSS).clamp(max=LARGEST_LOSS) * LOSS_UNITS).round().sum())


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(1)
