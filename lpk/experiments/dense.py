"""The dense network made stronger: the tickets pooled into the network they were pruned from ("Towards stronger dense
networks" in the paper's introduction)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lpk import page
from lpk.experiments import pools
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Measured, Plan
from lpk.presets import Preset
from lpk.reporting import plots

VARIANTS: dict[str, pools.Options] = {
    "dense network": None,
    "pool (interpolation)": pools.INTERPOLATION,
    "pool (average)": pools.AVERAGE,
}


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    return pools.plan(preset, seeds, VARIANTS, _show, targets=[0])


def _show(measured: Sequence[Measured]) -> Findings:
    seeds = list(dict.fromkeys(m.part.seed for m in measured))
    cells = pools.cells(measured, VARIANTS)
    accuracies = {label: row[0].accuracy for label, row in cells.items()}
    dense, *pooled = accuracies.values()
    gains = [spread(a - b for a, b in zip(own.values, dense.values, strict=True)) for own in pooled]
    lines = [
        [str(seed), *(page.percent(own.values[i]) for own in accuracies.values()), *(_point(g, i) for g in gains)]
        for i, seed in enumerate(seeds)
    ]
    lines.append(["mean", *map(str, accuracies.values()), *(gain.points for gain in gains)])
    labels = list(accuracies)[1:]
    said = ", ".join(f"{label} {gain.points}" for label, gain in zip(labels, gains, strict=True))
    return Findings(
        summary=f"Points of test accuracy over the dense network: {said}.",
        records=pools.records(cells),
        tables=[Table("", ["seed", *accuracies, *(f"gain of {label}" for label in labels)], lines)],
        figures={"accuracy": _plot(accuracies, len(seeds))},
        note="Test accuracy in percent, gains in points; mean ± sample standard deviation over the seeds.",
    )


def _point(gain: Spread, i: int) -> str:
    return page.points(gain.values[i])


def _plot(accuracies: Mapping[str, Spread], count: int) -> bytes:
    with plots.drawing(5, 3) as drawn:
        axes = drawn.figure.subplots()
        for i in range(count):
            y = [100 * own.values[i] for own in accuracies.values()]
            axes.plot(list(accuracies), y, "o-", color=plots.LIGHT["series0"], lw=1, ms=4, alpha=0.6)
        axes.set_title("test accuracy, a line for each seed", loc="left", fontsize=9, color=plots.LIGHT["soft"])
        axes.set_xlim(-0.3, len(accuracies) - 0.7)
        plots.value_scale(axes, "%")
    return drawn.image
