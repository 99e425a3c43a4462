"""Accuracy on corrupted test samples, tickets against pools (Figure 3c)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lpk.data import corruptions
from lpk.experiments import pools
from lpk.experiments.findings import Findings, Spread, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan
from lpk.experiments.subject import Subject
from lpk.pooling.samples import Validation
from lpk.presets import Preset

LABELS = ("ticket", "pool (interpolation)")


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    tickets = preset.imp.rounds + 1
    searched = tickets * pools.networks(preset, pools.INTERPOLATION)
    source = corruptions.FOLDERS.get(preset.data.name, "made here")
    parts = [
        Part(
            seed,
            {"corruption": name, "source": source, "severities": list(corruptions.SEVERITIES)},
            networks=2 * tickets * len(corruptions.SEVERITIES) + (0 if i else searched),
        )
        for seed in seeds
        for i, name in enumerate(corruptions.names(preset.data.name))
    ]
    if preset.data.name in corruptions.FOLDERS:
        return Plan(parts, _measure, _show, check=partial(corruptions.folder, preset.data.name))
    return Plan(parts, _measure, _show)


def _measure(subject: Subject, corruption: str, source: str, severities: Sequence[int]) -> Found:
    """Accuracies [network][severity][round] under one corruption."""
    networks = {
        LABELS[0]: [ticket.flat for ticket in subject.tickets],
        LABELS[1]: [subject.pool(t, **pools.INTERPOLATION).flat for t in range(len(subject.tickets))],
    }
    accuracy: dict[str, list[list[float]]] = {label: [] for label in LABELS}
    for severity in severities:
        split = corruptions.corrupted(subject.run.data, corruption, severity, root=subject.root)
        samples = Validation(split.loader(subject.batch_size, seed=0), subject.batch_size, subject.evaluator.device)
        for label, flats in networks.items():
            accuracy[label].append([subject.predict(flat, samples).accuracy for flat in flats])
    return {"densities": [ticket.density for ticket in subject.tickets], "accuracy": accuracy}


def _show(measured: Sequence[Measured]) -> Findings:
    seeds = list(dict.fromkeys(m.part.seed for m in measured))
    names = list(dict.fromkeys(m.part.settings["corruption"] for m in measured))
    severities = measured[0].part.settings["severities"]
    densities = measured[0].found["densities"]
    found = {(m.part.seed, m.part.settings["corruption"]): m.found["accuracy"] for m in measured}

    def over_seeds(label: str, name: str, severity: int, round_: int) -> Spread:
        return spread(found[seed, name][label][severity][round_] for seed in seeds)

    def mean(label: str, names: Sequence[str], levels: Sequence[int], rounds: Sequence[int]) -> Spread:
        """Over corruptions, severities and rounds, for each seed."""
        every = [over_seeds(label, n, s, r).values for n in names for s in levels for r in rounds]
        return spread(sum(column) / len(column) for column in zip(*every, strict=True))

    def difference(names: Sequence[str], levels: Sequence[int], rounds: Sequence[int]) -> Spread:
        ticket, pooled = (mean(label, names, levels, rounds).values for label in LABELS)
        return spread(b - a for a, b in zip(ticket, pooled, strict=True))

    levels, rounds = range(len(severities)), range(len(densities))
    cells = {label: [pools.Cell(r, densities[r], mean(label, names, levels, [r])) for r in rounds] for label in LABELS}
    gains = [[difference([name], [s], rounds) for s in levels] for name in names]
    by_name = [[name, *(mean(label, [name], levels, rounds) for label in LABELS)] for name in names]
    said = pools.findings(cells)
    return Findings(
        summary=f"Over all corruptions and severities. {said.summary}",
        records=[
            {"variant": label, "corruption": name, "severity": severities[s], "round": r, "density": densities[r]}
            | over_seeds(label, name, s, r).record()
            for label in LABELS
            for name in names
            for s in levels
            for r in rounds
        ],
        tables=[
            pools.table("Mean over all corruptions and severities", cells),
            Table(
                "Mean over all severities and densities", ["corruption", *LABELS], [list(map(str, x)) for x in by_name]
            ),
            Table(
                f"Gain of the {LABELS[1]} in points, mean over all densities",
                ["corruption", *(f"severity {severity}" for severity in severities)],
                [[name, *(gain.points for gain in row)] for name, row in zip(names, gains, strict=True)],
            ),
        ],
        figures=said.figures,
        note=f"{pools.NOTE} Corruptions: {measured[0].part.settings['source']}.",
    )
