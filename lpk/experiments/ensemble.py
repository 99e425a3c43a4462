"""The pool of a ticket and its two nearest, against the ensemble of their outputs, which costs three times as much
(Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lpk.experiments import pools
from lpk.experiments.findings import Findings, Table, spread
from lpk.experiments.study import Found, Measured, Part, Plan
from lpk.experiments.subject import Prediction, Subject
from lpk.networks.flat import Flat
from lpk.pooling.search import nearest_first
from lpk.presets import Preset

NEIGHBOURS = 2
POOL = {**pools.INTERPOLATION, "candidates": NEIGHBOURS}
LABELS = {"ticket": "ticket", "pool": "pool of the three", "ensemble": "output ensemble of the three"}


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    networks = pools.networks(preset, POOL) + 1 + NEIGHBOURS
    targets = range(preset.imp.rounds + 1)
    parts = [Part(seed, {"target": target}, networks) for seed in seeds for target in targets]
    return Plan(parts, _measure, _show)


def _measure(subject: Subject, target: int) -> Found:
    nearest = nearest_first(target, len(subject.tickets))[:NEIGHBOURS]
    members = [subject.tickets[i].flat for i in (target, *nearest)]
    predictions = [subject.predict(member) for member in members]
    mean = torch.stack([prediction.logits for prediction in predictions]).mean(0)
    pooled = subject.pool(target, **POOL)
    return {
        "density": subject.tickets[target].density,
        "accuracy": {
            "ticket": predictions[0].accuracy,
            "pool": subject.predict(pooled.flat).accuracy,
            "ensemble": Prediction(mean, predictions[0].labels).accuracy,
        },
        "passes": {"ticket": 1, "pool": 1, "ensemble": len(members)},
        "multiply_adds": {
            "ticket": multiply_adds(subject, members[0]),
            "pool": multiply_adds(subject, pooled.flat),
            "ensemble": sum(multiply_adds(subject, member) for member in members),
        },
    }


def multiply_adds(subject: Subject, network: Flat) -> int:
    """How often a weight that is not zero meets an activation, for one sample: convolutions and linear layers."""
    model = subject.run.model().eval()
    model.load_state_dict(subject.tickets.layout.unflatten(network))
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        channels = 1 if isinstance(layer, nn.Conv2d) else -1
        total += int(layer.weight.count_nonzero()) * (output.numel() // output.shape[channels])

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *subject.run.data.shape, dtype=torch.float32, device=next(model.parameters()).device))
    return total


def _show(measured: Sequence[Measured]) -> Findings:
    targets = sorted({m.part.settings["target"] for m in measured})
    by_target = [[m.found for m in measured if m.part.settings["target"] == target] for target in targets]
    cells = {
        label: [
            pools.Cell(target, found[0]["density"], spread(f["accuracy"][kind] for f in found))
            for target, found in zip(targets, by_target, strict=True)
        ]
        for kind, label in LABELS.items()
    }
    costs = {
        kind: [sum(f["multiply_adds"][kind] for f in found) / len(found) for found in by_target] for kind in LABELS
    }
    passes = measured[0].found["passes"]
    heads = pools.table("", cells).heads
    lines = [[LABELS[kind], *(f"{cost / 1e6:,.3g}" for cost in row)] for kind, row in costs.items()]
    for kind, line in zip(LABELS, lines, strict=True):
        line.insert(1, str(passes[kind]))
    cost = Table("Millions of multiply-adds for one sample, without the zeros", [heads[0], "passes", *heads[1:]], lines)
    kinds = {label: kind for kind, label in LABELS.items()}
    found = pools.findings(cells, [pools.table("Test accuracy", cells), cost])
    records = [
        {**r, "passes": passes[kinds[r["variant"]]], "multiply_adds": costs[kinds[r["variant"]]][r["round"]]}
        for r in found.records
    ]
    return replace(found, records=records)
