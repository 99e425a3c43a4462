"""Scores of networks on test samples, accuracy or any other, and whether a gain is more than luck."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from lpk.networks.wrappers import plain_copy
from lpk.pooling.samples import Samples, Validation
from lpk.progress import Progress
from lpk.tickets import conventions
from lpk.tickets.pooled import Pooled
from lpk.tickets.ticket import Ticket

PERCENT = "%"  # the unit of a fraction, which is shown in percent and points
ACCURACY = "accuracy"

Metric = Callable[[nn.Module], Tensor | float]  # higher is better; a tensor holds a score for each sample
Network = Ticket | Pooled | Mapping[str, Tensor]


@dataclass(frozen=True)
class Gain:
    """A difference of scores with its confidence interval, both NaN where no scores of single samples are known.

    unit: "%": the scores are fractions, and str() is in percentage points.
    """

    gain: float
    low: float
    high: float
    unit: str = PERCENT

    def __str__(self) -> str:
        text = "{:+.2f}" if self.unit == PERCENT else "{:+.4g}"
        gain, low, high = (
            text.format(100 * x if self.unit == PERCENT else x) for x in (self.gain, self.low, self.high)
        )
        return gain if math.isnan(self.low) else f"{gain} [{low}, {high}]"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a network did on test samples.

    Attributes:
        score: higher is better: the mean of `samples`, or what the metric returned.
        samples: each sample's score [N], on the CPU: whether it is predicted correctly (bool), or what the metric
            returned; None where that was one number.
        metric: what the score is called.
        unit: of the score; "%": it is a fraction.
    """

    score: float
    samples: Tensor | None
    metric: str = ACCURACY
    unit: str = PERCENT

    def gain(self, baseline: Evaluation) -> Gain:
        """The gain over another network with the paired 95% interval over the samples, where their scores are known.

        Raises ValueError where the two were not evaluated by the same metric on as many samples.
        """
        ours, theirs = (
            f"{e.metric} of {'an unknown number of' if e.samples is None else len(e.samples)} samples"
            for e in (self, baseline)
        )
        if ours != theirs:
            raise ValueError(f"a gain of {ours} over {theirs}: both must be of the same metric and samples")
        if self.samples is None or baseline.samples is None:
            return Gain(self.score - baseline.score, math.nan, math.nan, self.unit)
        return paired_gain(self.samples, baseline.samples, unit=self.unit)

    def __repr__(self) -> str:
        score = f"{100 * self.score:.2f}%" if self.unit == PERCENT else f"{self.score:.6g}{self.unit}"
        return f"Evaluation({self.metric} {score}{'' if self.samples is None else f', {len(self.samples)} samples'})"


class Options(TypedDict, total=False):
    """The keyword arguments of `evaluate`, once for all of its overloads."""

    metric: Metric | None
    unit: str | None
    batch_size: int | None
    device: torch.device | str | None
    progress: bool


@overload
def evaluate(
    model: nn.Module, networks: Network, test: Samples | None = None, **options: Unpack[Options]
) -> Evaluation: ...
@overload
def evaluate(
    model: nn.Module, networks: Sequence[Network], test: Samples | None = None, **options: Unpack[Options]
) -> list[Evaluation]: ...
def evaluate(
    model: nn.Module,
    networks: Network | Sequence[Network],
    test: Samples | None = None,
    *,
    metric: Metric | None = None,
    unit: str | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Evaluation | list[Evaluation]:
    """How well networks do on test samples.

        ticket, pool = lpk.evaluate(model, [tickets[5], pooled], (images, labels))
        print(pool.score, pool.gain(ticket))  # 0.8983 +0.37 [+0.10, +0.64]

    Args:
        model: the network that they belong to; it is copied, and not changed.
        networks: tickets, pooled networks or state dicts, in a list or lpk.Tickets; or one of them.
        test: samples that accuracy is counted on: (inputs, integer labels) or a DataLoader of such batches.
        metric: in place of the accuracy on `test`: a function of the model, with the network in it, in evaluation mode
            and without gradients. What it returns is the better the higher it is: a tensor [samples] of scores, whose
            mean is the network's and by which gains have intervals, or one number. It is called by its __name__.
        unit: of the metric's scores, such as " dB"; "%": they are fractions, shown in percent. None: none.
        batch_size: of the test samples; None: as in lpk.pool.
        device: where networks are evaluated; None: where the model is.
        progress: whether to show it.

    Returns:
        An evaluation for each network, in their order, or one where one was given.

    Raises:
        ValueError: networks of another kind than `model`, no samples, neither or both of `test` and `metric`, a score
            that is NaN or infinite.
    """
    if (test is None) == (metric is None):
        raise ValueError("pass either `test` samples or a `metric` function")
    if metric is None and unit not in (None, PERCENT):
        raise ValueError(f"unit is {unit!r}; accuracies are in {PERCENT}, and only a `metric` may have another")
    one = isinstance(networks, Ticket | Pooled | Mapping)
    asked: list[Network] = [networks] if one else list(networks)  # type: ignore[list-item, arg-type]
    device = torch.device(device) if device else next((p.device for p in model.parameters()), torch.device("cpu"))
    copy = plain_copy(model).to(device).eval().requires_grad_(False)
    own = copy.state_dict()
    if metric is None:
        assert test is not None
        samples = Validation(test, batch_size, device, "test", "a `metric`")
        metric, name, unit = partial(_correct, samples=samples, device=device), ACCURACY, PERCENT
    else:
        name, unit = _name(metric), unit or ""
    found = []
    with Progress("test", len(asked), show=progress) as bar:
        for i, network in enumerate(asked):
            called = _called(network, i)
            bar.note(called)
            _load(copy, own, network, called)
            with torch.no_grad():
                score, scores = _scores(metric(copy.eval()), name, called)
            found.append(Evaluation(score, scores, name, unit))
            bar.advance()
    return found[0] if one else found


def correct_predictions(
    model: nn.Module, samples: Samples, *, batch_size: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Which samples a model predicts correctly, bool [N], in their order. The model is left in its mode.

    batch_size: None: the loader's own, and lpk.pooling.samples.BATCH_SIZE at most.
    """
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    try:
        return _correct(model, samples=Validation(samples, batch_size, device), device=device)
    finally:
        model.train(training)


def _correct(model: nn.Module, *, samples: Validation, device: torch.device) -> Tensor:
    """Which samples a model in evaluation mode predicts correctly, bool [N]."""
    correct = []
    with torch.inference_mode():
        for inputs, labels in samples.batches():
            inputs, labels = inputs.to(device), labels.to(device)
            inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
            logits = model(inputs)
            if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
                shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"the model returned {shape}; accuracy needs logits [{len(labels)}, classes]")
            if samples.largest >= logits.shape[1]:
                raise ValueError(f"a sample has the label {samples.largest}, the model {logits.shape[1]} classes")
            correct.append((logits.argmax(1) == labels).cpu())
    return torch.cat(correct)


def paired_gain(correct: Tensor, baseline: Tensor, *, z: float = 1.96, unit: str = PERCENT) -> Gain:
    """The gain of one network over another on the same samples, with a paired normal (Wald) interval.

    Args:
        correct, baseline: which samples each predicts correctly, or their scores, [N]; or [networks, N], whose mean
            gain is meant.
        z: the interval's half-width in standard errors; 1.96 is 95%.
        unit: of the scores, see Gain.
    """
    difference = (correct.double() - baseline.double()).reshape(-1, correct.shape[-1]).mean(0)
    gain, count = float(difference.mean()), len(difference)
    error = float(difference.std(correction=1)) / math.sqrt(count) if count > 1 else math.nan
    return Gain(gain, gain - z * error, gain + z * error, unit)


def _load(copy: nn.Module, own: Mapping[str, Tensor], network: Network, called: str) -> None:
    """Writes a network's values into the copy of the model, whose state dict has the entries of `own`."""
    state = network.state_dict if isinstance(network, Ticket | Pooled) else conventions.network(network).state
    missing, more = [name for name in own if name not in state], [name for name in state if name not in own]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or more or wrong:
        problem = (
            f"{missing[0]!r} is missing"
            if missing
            else f"{more[0]!r} is not expected"
            if more
            else f"{wrong[0]!r} has shape {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
        raise ValueError(f"{called} is of another network than the model: {problem}")
    copy.load_state_dict(state)


def _called(network: Network, i: int) -> str:
    if isinstance(network, Pooled):
        return f"{network.settings.get('method', 'pool')} {network.round}"
    return f"ticket {network.round}" if isinstance(network, Ticket) else f"network {i}"


def _name(metric: Metric) -> str:
    """What a metric is called: by its own name, words apart."""
    name = getattr(metric, "__name__", getattr(getattr(metric, "func", None), "__name__", "score"))
    return "score" if name == "<lambda>" else str(name).strip("_").replace("_", " ")


def _scores(returned: object, metric: str, called: str) -> tuple[float, Tensor | None]:
    """The score, and each sample's, where the metric returned them."""
    scores = returned.detach().cpu() if isinstance(returned, Tensor) and returned.dim() else None
    if scores is not None and (scores.dim() != 1 or not len(scores) or scores.is_complex()):
        raise ValueError(f"{metric} returned {tuple(scores.shape)} {scores.dtype}; scores [samples], or one number")
    try:
        score = float(returned if scores is None else scores.double().mean())  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{metric} returned a {type(returned).__name__}; scores [samples], or one number") from error
    if not math.isfinite(score):
        raise ValueError(f"{metric} returned {score} for {called}; a finite number is needed")
    return score, scores
