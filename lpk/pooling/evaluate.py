"""The evaluation of one candidate after another: calibrated, then scored, on samples that are prepared once.

Accuracy is a count of correct predictions, at one fixed batch size (the last batch padded), so that it does not depend
on who asks. A model whose predictions depend on the other samples of a batch gets them in their own order, without
padding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lpk import choices
from lpk.networks.flat import Layout
from lpk.networks.flat_model import FlatModel
from lpk.networks.replay import Recorder, is_gpu
from lpk.pooling.backends import Backend, choose, mixes
from lpk.pooling.calibration import TOLERANCE, Statistics
from lpk.pooling.criteria import NOBODY, Score
from lpk.pooling.eager import Eager
from lpk.pooling.methods import AUTOCASTS, CRITERIA, STATISTICS
from lpk.pooling.race import Race
from lpk.pooling.samples import BATCH_SIZE, Batch, Calibration, Inputs, Samples, Validation
from lpk.pooling.tally import Tally


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
        batch_size: of calibration and validation; None: what each loader and the device suggest, see
            lpk.pooling.samples.
        backend: what evaluates: "torch", "graph" (PyTorch, replayed as CUDA graphs), "sparse" (the engine), or "auto"
            for the fastest that is possible.
        autocast: the dtype that PyTorch computes in where that is safe (torch.autocast), or its name; None: the model's
            own.

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
        autocast: torch.dtype | str | None = None,
        device: torch.device | None = None,
    ) -> None:
        choices.check("statistics", statistics, STATISTICS)
        choices.check("criterion", criterion, CRITERIA)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
        if not 0.0 <= tolerance < math.inf:
            raise ValueError(f"tolerance is {tolerance}; a number of at least 0 is needed")
        autocast = getattr(torch, autocast) if isinstance(autocast, str) and autocast in AUTOCASTS else autocast
        if autocast not in (None, *(getattr(torch, name) for name in AUTOCASTS)):
            possible = ", ".join(f"torch.{name}" for name in AUTOCASTS)
            raise ValueError(f"autocast is {autocast}; {possible}, the name of one, or None is possible")
        if (validation is None) == (evaluate is None):
            raise ValueError("pass either `validation` samples or an `evaluate` function")
        device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
        self.flat = FlatModel(model, layout, device)
        self.device = device
        self.tolerance = tolerance
        self.autocast: torch.dtype | None = autocast  # type: ignore[assignment]
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
        self._tally = None
        if self.validation is not None:
            self._tally = Tally(self.validation.count, self.batch_size, criterion, device)
        self.wanted = backend
        replayed = backend in ("auto", "graph") and evaluate is None
        self._recorder = Recorder(
            device, None if replayed else "nothing is to be recorded", required=replayed and backend == "graph"
        )
        self._measure = self._recorder.replayed(self._measured, lambda: [*self._statistics.state, *self._buffers()])
        self._count = self._recorder.replayed(self._counted, lambda: [*self._tally_state(), *self._buffers()])
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
        """What evaluates: "torch", "graph" or "sparse"; as wanted while nothing was evaluated."""
        if self._chosen is None:
            return self.wanted
        return "graph" if isinstance(self._chosen, Eager) and self._recorder.problem is None else self._chosen.name

    @property
    def graph_problem(self) -> str | None:
        """Why a network on a GPU is called and not replayed; None where it is, or is not to be."""
        return self._recorder.problem if is_gpu(self.device) and self.wanted == "auto" else None

    @property
    def tf32(self) -> bool | None:
        """Whether convolutions of float32 may round what they multiply to TF32, as PyTorch's default on a GPU is."""
        if self.device.type != "cuda":
            return None
        precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)  # since PyTorch 2.9
        return torch.backends.cudnn.allow_tf32 if precision is None else precision == "tf32"

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
            self._statistics.calibrate(self.calibration.batches(), self._calibrated)
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
        assert self.validation is not None and self._race is not None and self._tally is not None
        tally, race = self._tally, self._race
        with torch.inference_mode():
            tally.clear()
            unread = tally.harmless(0, most)
            for number, (inputs, labels) in enumerate(self._batches(self.validation)):
                self._count(inputs, labels)
                self.forward_samples += len(inputs)
                self.validated += len(inputs)
                if unread > 0 and not (number == 0 and race.runs):
                    unread -= 1
                    continue
                errors, cost = tally.read()
                if cost > most or (number == 0 and race.loses(errors, most)):
                    return None
                unread = tally.harmless(cost, most)
            errors, cost = tally.read()
            accuracy = (self.validation.count - errors) / self.validation.count
            return Score(self.highest - cost, accuracy, tally.margins())

    def predict(self, samples: Validation | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the network in `flat` [N, classes] and the samples' labels [N], on the CPU.

        Args:
            samples: in batches of their own size; None: the validation samples, in their current order.
        """
        samples = samples or self.validation
        assert samples is not None
        logits, labels = [], []
        with torch.inference_mode():
            for inputs, batch_labels in self._batches(samples):
                real = batch_labels != NOBODY
                logits.append(self._logits(inputs)[real].float().cpu())
                labels.append(batch_labels[real].cpu())
                self.forward_samples += len(inputs)
                self.validated += len(inputs)
        return torch.cat(logits), torch.cat(labels)

    def restart(self) -> None:
        """Before another target: its search is the same whichever were searched before, and by which process."""
        if self._race is not None:
            self._race.restart()

    def hardest_first(self, score: Score) -> None:
        """Asks the samples first that a network scored in full finds hardest, see Race.hardest_first."""
        if self._race is not None and score.margins is not None and not self._mixes:
            self._race.hardest_first(score.margins)

    def draw_heat(self, errors_allowed: int, error: float) -> None:
        """Asks a random batch of the hardest samples first, by which `score` may drop a network, see Race.draw_heat."""
        if self._race is not None and not self._mixes:
            self._race.draw_heat(errors_allowed, error)

    def _calibrated(self, inputs: Tensor) -> None:
        """A calibration batch's part of the statistics."""
        network = self._network(inputs)
        if isinstance(network, Eager):
            network.prepare(inputs, measuring=True)
        self._measure(inputs)
        self.forward_samples += len(inputs)

    def _measured(self, inputs: Tensor) -> None:
        self._statistics.add(inputs, self._network(inputs).measure)

    def _batches(self, samples: Validation) -> Iterator[Batch]:
        """Batches on the device, all of one size unless predictions depend on each other: the last one is filled up
        with its last sample, whose label is then NOBODY. The network in `flat` is ready for them."""
        size = samples.batch_size
        for number, (inputs, labels) in enumerate(samples.batches()):
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            if number == 0:
                network = self._network(inputs)
                if self._mixes is None and size > 1:  # one alone may be all that memory has room for
                    self._mixes = mixes(network, inputs)
                if isinstance(network, Eager):
                    network.prepare(inputs, measuring=False)
            if len(inputs) < size and not self._mixes:
                missing = size - len(inputs)
                inputs = torch.cat((inputs, inputs[-1:].expand(missing, *inputs.shape[1:])))
                labels = torch.cat((labels, labels.new_full((missing,), NOBODY)))
            yield inputs, labels

    def _counted(self, inputs: Tensor, labels: Tensor) -> None:
        assert self._tally is not None
        self._tally.add(self._logits(inputs), labels)

    def _logits(self, inputs: Tensor) -> Tensor:
        """Predictions of one batch [B, classes]."""
        logits = self._network(inputs)(inputs)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model returned {shape}; logits [{len(inputs)}, classes] are needed")
        if self.validation is not None and self.validation.largest >= logits.shape[1]:
            raise ValueError(
                f"validation holds the label {self.validation.largest}, but the model returned {logits.shape[1]} "
                "logits: one for each class is needed, or pass `evaluate`"
            )
        return logits

    def _network(self, inputs: Tensor) -> Backend:
        """What computes the network in `flat`, chosen when the first inputs are there."""
        if self._chosen is None:
            self._chosen = choose(self.flat.model, self.wanted, inputs, self.autocast, self._recorder)
        return self._chosen

    def _tally_state(self) -> list[Tensor]:
        return [] if self._tally is None else self._tally.state

    def _buffers(self) -> list[Tensor]:
        """What a forward pass may change beside BatchNorm's statistics: buffers that can be written back."""
        buffers = [x for x in self.flat.model.buffers() if x.layout == torch.strided and not x.is_quantized]
        return [x for x in buffers if not x.is_complex() and all(x.stride(d) or n == 1 for d, n in enumerate(x.shape))]
