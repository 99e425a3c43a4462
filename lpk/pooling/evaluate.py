"""The evaluation of one candidate after another: calibrated, then scored, on samples that are prepared once.

Accuracy is a count of correct predictions, at one fixed batch size (the last batch padded), so that it does not depend
on who asks. A model whose predictions depend on the other samples of a batch gets them in their own order, without
padding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.pooling.backends import Backend, choose, mixes
from lpk.pooling.calibration import TOLERANCE, Statistics
from lpk.pooling.criteria import Score, loss_units, margins
from lpk.pooling.methods import CRITERIA, STATISTICS
from lpk.pooling.race import Race
from lpk.pooling.samples import BATCH_SIZE, Calibration, Inputs, Samples, Validation


class Evaluator:
    """Scores candidates that are written into `flat`.

    Args:
        model: copied, never changed.
        validation: samples that accuracy is counted on; needed unless `evaluate` is given.
        calibration: samples that renew BatchNorm's statistics; their labels, if there are any, are not looked at.
        evaluate: model -> float, higher is better, instead of the criterion.
        criterion: what counts against a network: "accuracy", its errors, or "loss", its cross-entropy.
        statistics: "recalibrate", "interpolate" (like the other parameters) or "leave" (the target's stay).
        tolerance: the standard error at which calibration stops, see lpk.pooling.calibration; 0: it uses all samples.
        batch_size: of calibration and validation; None: each loader's own, and 128 at most, see lpk.pooling.samples.
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
        self._race = None if self.validation is None else Race(self.validation)
        self._statistics = Statistics(self.flat, tolerance)
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
        """Estimates BatchNorm's statistics for the network in `flat` from the calibration samples, see
        Statistics.calibrate. Raises ValueError where a batch is too small for a variance."""
        if self.statistics == "recalibrate" and self.batchnorms and self.calibration is not None:
            self._statistics.calibrate(self.calibration.batches(), self._measure)
            self.written(weights=False)

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
        assert self.validation is not None and self._race is not None
        errors = cost = 0
        logits, labels = [], []
        with torch.inference_mode():
            for inputs, batch_labels in self.validation.batches():
                batch_labels = batch_labels.to(self.device)
                logits.append(self._logits(self._network(inputs), inputs, self.batch_size))
                labels.append(batch_labels)
                errors += int((logits[-1].argmax(1) != batch_labels).sum())
                cost = errors if self.criterion == "accuracy" else cost + loss_units(logits[-1], batch_labels)
                if cost > most or (len(logits) == 1 and self._race.loses(errors, most)):
                    return None
            accuracy = (self.validation.count - errors) / self.validation.count
            return Score(self.highest - cost, accuracy, margins(torch.cat(logits), torch.cat(labels)))

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
        """Asks the samples first that a network scored in full finds hardest, see Race.hardest_first."""
        if self._race is not None and score.margins is not None and not self._mixes:
            self._race.hardest_first(score.margins)

    def draw_heat(self, errors_allowed: int, error: float) -> None:
        """Asks a random batch of the hardest samples first, by which `score` may drop a network, see Race.draw_heat."""
        if self._race is not None and not self._mixes:
            self._race.draw_heat(errors_allowed, error)

    def _measure(self, inputs: Tensor) -> Mapping[_BatchNorm, int]:
        calls = self._network(inputs).measure(inputs)
        self.forward_samples += len(inputs)
        return calls

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
