"""When pooling pays: what it adds to the tickets, against what training leaves behind. This is not in the paper.

From the preset's own setting three axes lead away, each of which varies one thing: the share of wrong labels, the
epochs of a round, the number of training samples. Each setting has tickets of its own, for each seed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from lpk.data.sets import TRAINING
from lpk.experiments import comparison, pools
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Condition, Found, Measured, Part, Plan
from lpk.experiments.subject import Subject
from lpk.presets import Preset
from lpk.pruning.recipe import Recipe
from lpk.reporting import plots

LABEL_NOISE = (0.0, 0.1, 0.2, 0.4)
EPOCHS = (0.25, 0.5, 1, 2)  # times the preset's
SAMPLES = (27, 9, 3, 1)  # the preset's divided by

BY_LOSS: pools.Options = {**pools.INTERPOLATION, "criterion": "loss"}
CALIBRATED: pools.Options = {"method": "calibrated"}
VARIANTS = {label: options for label, options in comparison.VARIANTS.items() if "newcomer" not in label}
VARIANTS["Lottery Pools (interpolation, by the loss)"] = BY_LOSS
VARIANTS["calibrated tickets"] = CALIBRATED
TICKETS, *METHODS = VARIANTS
POOL, RENEWED = METHODS[0], METHODS[-1]

NOTE = (
    "Accuracies in percent, gains in points over the tickets of the same setting, means over all densities ± the "
    "sample standard deviation over the seeds; the best accuracy of a setting is bold. Better, worse: of all densities "
    "and seeds. One thing at a time differs from the preset. Wrong labels are among the training samples alone: the "
    "validation samples, which pick, and the test samples, which only report, have their own. With other epochs the "
    "milestones move in proportion, rounded up, while weights are rewound to the preset's epoch. Fewer samples are "
    "trained on for as many epochs, which are fewer steps. Calibrated tickets have BatchNorm's statistics estimated "
    "again, as every pool has, and nothing else: what they gain is not the pool's. A ticket costs the training of its "
    "round and of all before it; a pool, SWA and EMA take the tickets of every round."
)


class Setting(NamedTuple):
    """What training is given: the share of wrong labels, the epochs of a round, the number of samples."""

    label_noise: float
    epochs: int
    samples: int


class Axis(NamedTuple):
    """What one field of a setting is called, and how its values are written."""

    words: str
    write: Callable[[float], str]


AXES = {
    "label_noise": Axis("wrong labels", lambda value: f"{100 * value:g}%"),
    "epochs": Axis("epochs a round", "{:,}".format),
    "samples": Axis("training samples", "{:,}".format),
}


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    parts = [
        Part(seed, {"target": target, "pool": options}, pools.networks(preset, options), condition=each)
        for seed in seeds
        for each in conditions(preset)
        for target in range(preset.imp.rounds + 1)
        for options in VARIANTS.values()
    ]
    return Plan(parts, _measure, partial(_show, preset))


def _measure(subject: Subject, target: int, pool: pools.Options) -> Found:
    if pool != CALIBRATED:
        return pools.measure(subject, target, pool)
    ticket = subject.tickets[target]
    prediction, taken = subject.calibrated(ticket.flat)
    return {"density": ticket.density, "accuracy": prediction.accuracy, "forward_samples": taken}


def conditions(preset: Preset) -> list[Condition | None]:
    """Those of all settings, each once; the preset's own, None, is the first."""
    settings = dict.fromkeys(
        [setting_of(preset), *(setting for row in settings_of(preset).values() for setting in row)]
    )
    return [condition(preset, setting) for setting in settings]


def setting_of(preset: Preset) -> Setting:
    data = preset.data
    samples = TRAINING[data.name] - data.validation if data.train is None else data.train
    return Setting(data.label_noise, preset.train.epochs, samples)


def settings_of(preset: Preset) -> dict[str, list[Setting]]:
    """Along each axis, in ascending order; the preset's own is on all of them."""
    own = setting_of(preset)
    least = preset.imp.rewind + 1  # epochs: something has to be trained after rewinding
    values: dict[str, set[float]] = {
        "label_noise": {own.label_noise, *LABEL_NOISE},
        "epochs": {own.epochs, *(max(least, round(own.epochs * factor)) for factor in EPOCHS)},
        "samples": {max(1, own.samples // divisor) for divisor in SAMPLES},
    }
    return {axis: [Setting(**own._asdict() | {axis: value}) for value in sorted(values[axis])] for axis in AXES}


def condition(preset: Preset, setting: Setting) -> Condition | None:
    """The preset under a setting that differs from its own in one thing; None: in nothing."""
    own = setting_of(preset)
    changed = [axis for axis in AXES if getattr(setting, axis) != getattr(own, axis)]
    if not changed:
        return None
    (axis,) = changed
    train = setting.samples if axis == "samples" else preset.data.train
    return Condition(
        f"{axis.replace('_', '-')}-{getattr(setting, axis):g}",
        replace(
            preset,
            data=replace(preset.data, label_noise=setting.label_noise, train=train),
            train=_of_length(preset.train, setting.epochs),
        ),
    )


def _of_length(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe's schedule stretched or shortened to so many epochs; drops that would come at the end fall away."""

    def scaled(epoch: int) -> int:
        return -(-epoch * epochs // recipe.epochs)

    milestones = tuple(scaled(each) for each in recipe.milestones if scaled(each) < epochs)
    return replace(recipe, epochs=epochs, milestones=milestones, warmup=scaled(recipe.warmup))


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(preset: Preset, measured: Sequence[Measured]) -> Findings:
    by_setting: dict[Setting, list[Measured]] = {}
    for each in measured:
        under = each.part.condition
        by_setting.setdefault(setting_of(preset if under is None else under.preset), []).append(each)
    rows: dict[Setting, pools.Cells] = {setting: pools.cells(own, VARIANTS) for setting, own in by_setting.items()}
    axes = {axis: own for axis, settings in settings_of(preset).items() if (own := [s for s in settings if s in rows])}
    return Findings(
        summary=_summary(rows, axes),
        records=_records(by_setting, rows),
        tables=[*(_table(preset, axis, settings, rows) for axis, settings in axes.items()), _search(measured)],
        figures={"gains": _plot(rows, axes)},
        note=NOTE,
    )


def _gain(row: pools.Cells, label: str, over: str = TICKETS) -> Spread:
    """Of one variant over another, the mean over all densities, for each seed."""
    return pools.mean(pools.gains(row[label], row[over]))


def _accuracy(row: pools.Cells, label: str) -> Spread:
    return pools.mean([cell.accuracy for cell in row[label]])


def _summary(rows: Mapping[Setting, pools.Cells], axes: Mapping[str, Sequence[Setting]]) -> str:
    """In sentences: the pool's gains along each axis, what is clear of the seeds, and what longer training does."""
    gains = {(s, label): _gain(row, label) for s, row in rows.items() for label in METHODS}

    def along(over: str) -> str:
        return "; ".join(
            f"{_listed([_gain(rows[s], POOL, over).points for s in settings])} "
            f"with {_listed([AXES[axis].write(getattr(s, axis)) for s in settings])} {AXES[axis].words}"
            for axis, settings in axes.items()
        )

    said = [
        f"Points of test accuracy over {TICKETS}, on average over all densities, for {POOL}: {along(TICKETS)}.",
        f"Over {RENEWED}: {along(RENEWED)}.",
        *_clear(rows, gains),
    ]
    setting, label = max(gains, key=lambda each: gains[each].mean)
    place = ", ".join(f"{axis.write(value)} {axis.words}" for axis, value in zip(AXES.values(), setting, strict=True))
    said.append(f"The largest gain is that of {label}, {gains[setting, label].points}, with {place}.")
    said += _longer(rows, axes.get("epochs", []))
    return " ".join(said)


def _clear(rows: Mapping[Setting, pools.Cells], gains: Mapping[tuple[Setting, str], Spread]) -> list[str]:
    """In how many settings the seeds agree; nothing where one of them has a single seed."""
    if any(gain.std is None for gain in gains.values()):
        return []
    counts = []
    for label in METHODS:
        own = [gains[setting, label] for setting in rows]
        better, worse = (sum(sign * gain.mean > (gain.std or 0) for gain in own) for sign in (1, -1))
        counts.append(f"{label} {better} / {worse}")
    said = ", ".join(counts)
    return [f"Gains / losses of more than the standard deviation over the seeds, in {len(rows)} settings: {said}."]


def _longer(rows: Mapping[Setting, pools.Cells], settings: Sequence[Setting]) -> list[str]:
    """What the tickets gain by more epochs, for comparison: that is training, which a pool does not need."""
    steps = []
    for short, long in itertools.pairwise(settings):
        pairs = zip(*(_accuracy(rows[each], TICKETS).values for each in (long, short)), strict=True)
        steps.append(f"from {short.epochs} to {long.epochs} {spread(a - b for a, b in pairs).points}")
    return [f"The tickets themselves gain by more epochs a round: {', '.join(steps)}."] if steps else []


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _table(preset: Preset, axis: str, settings: Sequence[Setting], rows: Mapping[Setting, pools.Cells]) -> Table:
    """For each setting along the axis a line for the tickets and for each method."""
    count = preset.imp.rounds + 1
    third = max(1, round(count / 3))
    heads = [AXES[axis].words, "", "test accuracy", "gain", f"densest {third}", f"sparsest {third}", "worst density"]
    heads += ["better", "worse", "epochs of training", "networks at inference"]
    lines: list[list[str]] = []
    best = []
    for setting in settings:
        row = rows[setting]
        accuracies = [_accuracy(row, label) for label in VARIANTS]
        most = max(round(each.mean, 4) for each in accuracies)  # as printed
        best += [(len(lines) + i, 2) for i, each in enumerate(accuracies) if round(each.mean, 4) == most]
        all_rounds = setting.epochs + preset.imp.rounds * (setting.epochs - preset.imp.rewind)
        value, own_rounds = AXES[axis].write(getattr(setting, axis)), f"{setting.epochs} to {all_rounds}"
        lines.append([value, TICKETS, str(accuracies[0]), *["–"] * 6, own_rounds, "1"])
        for label, accuracy in zip(METHODS, accuracies[1:], strict=True):
            gains = pools.gains(row[label], row[TICKETS])
            over_all, *others = pools.gain_columns(row[label], row[TICKETS])
            lines.append(
                [
                    value,
                    label,
                    str(accuracy),
                    over_all,
                    *(pools.mean(own).points for own in (gains[:third], gains[-third:])),
                    *others,
                    own_rounds if VARIANTS[label] == CALIBRATED else str(all_rounds),
                    "1",
                ]
            )
    return Table(f"Against {AXES[axis].words}", heads, lines, best)


def _search(measured: Sequence[Measured]) -> Table:
    """What finding a network costs beside the training."""
    lines = []
    for label in METHODS:
        own = [m.found["forward_samples"] for m in measured if m.part.settings["pool"] == VARIANTS[label]]
        lines.append([label, f"{statistics.fmean(own) / 1000:,.1f}"])
    return Table(
        "Finding one network, mean over all settings and densities", ["", "thousands of samples evaluated"], lines
    )


def _records(
    measured: Mapping[Setting, Sequence[Measured]], rows: Mapping[Setting, pools.Cells]
) -> list[dict[str, object]]:
    records = []
    for setting, row in rows.items():
        for label, cells in row.items():
            gains = pools.gains(row[label], row[TICKETS])
            for cell, gain in zip(cells, gains, strict=True):
                key = {"target": cell.round, "pool": VARIANTS[label]}
                found = [m.found.get("forward_samples", 0) for m in measured[setting] if m.part.settings == key]
                place = {"variant": label, "round": cell.round, "density": cell.density}
                costs = {"forward_samples": statistics.fmean(found)}
                records.append(setting._asdict() | place | cell.accuracy.record() | gain.record("gain") | costs)
    return records


def _plot(rows: Mapping[Setting, pools.Cells], axes: Mapping[str, Sequence[Setting]]) -> bytes:
    """A panel for each axis, each with its own scale: gains differ in size from one to the other."""
    with plots.drawing(9, 3.6) as drawn:
        panels = drawn.figure.subplots(1, len(axes), squeeze=False)[0]
        for panel, (axis, settings) in zip(panels, axes.items(), strict=True):
            places = range(len(settings))
            lines = [plots.Line(TICKETS, [0.0] * len(settings))]
            for i, label in enumerate(METHODS):
                gains = [_gain(rows[setting], label) for setting in settings]
                lines.append(_line(label, gains, "± standard deviation" if i == 0 else ""))
            panel.set_xlabel(AXES[axis].words, color=plots.LIGHT["soft"])
            plots.draw_lines(panel, list(places), lines, "")
            panel.set_xticks(places, [AXES[axis].write(getattr(setting, axis)) for setting in settings])
            panel.set_xlim(-0.3, len(settings) - 0.7)
            plots.value_scale(panel, "")
        panels[0].set_title("gain in points", loc="left", fontsize=9, color=plots.LIGHT["soft"])
        handles = panels[0].get_legend_handles_labels()
        drawn.figure.legend(*handles, loc="outside upper left", ncols=3, frameon=False, labelcolor=plots.LIGHT["ink"])
    return drawn.image


def _line(label: str, gains: Sequence[Spread], band: str) -> plots.Line:
    y = [100 * gain.mean for gain in gains]
    if any(gain.std is None for gain in gains):
        return plots.Line(label, y)
    low, high = ([100 * (gain.mean + sign * (gain.std or 0)) for gain in gains] for sign in (-1, 1))
    return plots.Line(label, y, plots.Band(band, low, high))
