"""What a study would still do, and about how long that takes on this machine. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lpk import models
from lpk.data import sets as datasets
from lpk.experiments.study import Plan, Study, groups
from lpk.networks.flat import Layout
from lpk.networks.prunable import convolutions
from lpk.pooling.evaluate import Evaluator
from lpk.presets import Preset
from lpk.pruning.train import Trainer

STEP = 128  # samples of a training step that is timed, at most


def forecast(study: Study, plans: Mapping[str, Plan]) -> list[str]:
    """In words, one line for each experiment, then the tickets to train and the time.

    Raises ValueError where the directory holds tickets of another preset.
    """
    lines = []
    networks = 0
    known = 0.0  # seconds, of experiments some of whose parts are finished
    # For a directory's tickets, and for the parts there: how many are missing, and of how many samples each.
    epochs: dict[str, tuple[int, int | None]] = {}
    for name, plan in plans.items():
        missing = done = ready = 0
        seconds = 0.0
        for group in groups(plan):
            preset = study.tickets_preset(group)
            epochs[group.directory] = _epochs(preset, study.rounds(group)), preset.data.train
            for part, finished in zip(group.parts, study.finished(name, group), strict=True):
                if finished is None:
                    missing += part.networks
                    count, of = epochs.get(f"{name} {group.directory}", (0, preset.data.train))
                    epochs[f"{name} {group.directory}"] = count + part.epochs, of
                else:
                    ready += 1
                    if not part.epochs:  # else most of the time was training
                        done, seconds = done + part.networks, seconds + finished.seconds
        lines.append(
            f"{name}: {ready} of {len(plan.parts)} parts are finished; at most {missing:,} networks to evaluate"
        )
        if done:
            known += missing * seconds / done
        else:
            networks += missing
    total = sum(count for count, _ in epochs.values())
    train = ", ".join(f"{path} {count:,}" for path, (count, _) in epochs.items() if count)
    lines.append(f"epochs of training: {f'{total:,} ({train})' if total else 'none'}")
    if total or networks or known:
        lines.append(_time(study, list(epochs.values()), networks, known))
    return lines


def _epochs(preset: Preset, rounds: int) -> int:
    """How many epochs are missing, the round that was interrupted counted in full."""
    later = preset.train.epochs - preset.imp.rewind
    return sum(later if round_ else preset.train.epochs for round_ in range(rounds, preset.imp.rounds + 1))


def _time(study: Study, epochs: Sequence[tuple[int, int | None]], networks: int, known: float) -> str:
    wanted = study.preset.data
    try:
        data = datasets.load(
            wanted.name, validation=wanted.validation, train=wanted.train, root=study.root, download=False
        )
    except datasets.DataNotFound as error:
        return f"the time can't be told: {error}"
    train, forward = _seconds_per_sample(study, data)
    samples = min(study.preset.pool.calibration, len(data.train)) + max(len(data.validation), len(data.test))
    trained = sum(count * (len(data.train) if of is None else of) for count, of in epochs)
    training, scoring = trained * train, networks * samples * forward + known
    return (
        f"about {_words(training + scoring)} on this machine: training {_words(training)}, evaluating at most "
        f"{_words(scoring)} (a search stops most networks early, so usually a fraction of it)"
    )


def _seconds_per_sample(study: Study, data: datasets.Data) -> tuple[float, float]:
    """Of a training step and of an evaluation, each timed once after a first one, on the dense network."""
    preset = study.preset
    model = models.build(preset.model.name, classes=data.classes, shape=data.shape, **preset.model.options)
    device = torch.device(study.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device).to(memory_format=torch.channels_last)
    few = data.train.take(min(STEP, preset.train.batch_size, len(data.train)))
    trainer = Trainer(few, replace(preset.train, batch_size=len(few), warmup=1), augment=preset.data.augment)
    prunable = convolutions(model) if preset.imp.prunable == "convolutions" else None
    evaluator = Evaluator(
        model,
        Layout.of_model(model, prunable),
        validation=few.loader(len(few)),
        calibration=few.loader(len(few)),
        batch_size=len(few),
    )
    seconds = []
    for run in (lambda: trainer(model, 0, 1), evaluator.score):
        run()
        began = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - began) / len(few))
    return seconds[0], seconds[1]


def _words(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
