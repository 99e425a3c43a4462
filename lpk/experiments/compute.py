"""What the same training buys otherwise, at every density. This is not in the paper.

A pool needs no training beside the tickets'. Who can train three times as long, can train for more epochs, or each
ticket three times: copies that begin where the ticket's round began, under its mask, and see the samples in other
orders. Of these the best one is taken, or their average (the particles of SWAMP, Choi et al., ICLR 2024), or the
ensemble of their outputs. SWA within a round (Izmailov et al., UAI 2018) needs no more training either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpk.experiments import conditions, pools
from lpk.experiments.findings import Findings, Table, spread
from lpk.experiments.retraining import last_phase, retrained
from lpk.experiments.study import Found, Measured, Part, Plan
from lpk.experiments.subject import Prediction, Subject
from lpk.networks.flat import Flat
from lpk.pooling.samples import Validation
from lpk.presets import Preset
from lpk.pruning.recipe import stream

TIMES = 3  # the training

TICKETS, POOL, AVERAGE, BY_LOSS = (
    "original tickets",
    "Lottery Pools (interpolation)",
    "Lottery Pools (average)",
    "Lottery Pools (by the loss)",
)
POOLS: dict[str, pools.Options] = {
    TICKETS: None,
    POOL: pools.INTERPOLATION,
    AVERAGE: pools.AVERAGE,
    BY_LOSS: conditions.BY_LOSS,
}
SWA = "SWA of the round's last epochs"
LONGER = f"{TIMES} times the epochs"
BEST, MEAN, ENSEMBLE = (f"{kind} of {TIMES} copies" for kind in ("best", "average", "output ensemble"))
COPIES = (BEST, MEAN, ENSEMBLE)

NOTE = (
    f"{pools.NOTE} Gains in points over the tickets; better, worse: of all densities and seeds. Epochs of training: to "
    "get this one network, from the densest to the sparsest, and to get those of all densities. A copy begins where "
    "the rounds begin, with the weights of the rewind epoch, under the ticket's mask, and sees the samples in another "
    f"order; the ticket itself is one of the {TIMES}. Validation samples pick the best. Their average, SWA and pools "
    "have BatchNorm's statistics estimated again; the ensemble averages logits. With more epochs a round the "
    "milestones move in proportion, while weights are rewound to the preset's epoch, and tickets have masks of their "
    "own. SWA averages a ticket's own weights after each epoch of its last learning rate, where that lasts for more "
    "than one."
)


class Cost(NamedTuple):
    """Epochs of training to get one network, that of each round, and to get all; networks evaluated at inference."""

    one: Sequence[int]
    all: int
    networks: int = 1


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    longer, copied = _longer(preset), {"copies": TIMES - 1, "swa": _has_swa(preset)}
    trained = (TIMES - 1) * _copy_epochs(preset)
    parts = []
    for seed in seeds:
        for target in range(preset.imp.rounds + 1):
            own = preset.train.epochs - (preset.imp.rewind if target else 0) if _has_swa(preset) else 0
            parts += [
                Part(seed, {"target": target, "pool": options}, pools.networks(preset, options))
                for options in POOLS.values()
            ]
            parts.append(Part(seed, {"target": target, **copied}, 2 * TIMES + 2, epochs=trained + own))
            parts.append(Part(seed, {"target": target, "pool": None}, 1, condition=longer))
    return Plan(parts, _measure, partial(_show, preset))


def _longer(preset: Preset) -> conditions.Condition | None:
    own = conditions.setting_of(preset)
    return conditions.condition(preset, own._replace(epochs=TIMES * own.epochs))


def _copy_epochs(preset: Preset) -> int:
    return preset.train.epochs - preset.imp.rewind


def _has_swa(preset: Preset) -> bool:
    return last_phase(preset.train, preset.imp.rewind) > 1


def costs(preset: Preset) -> dict[str, Cost]:
    """Of each variant; every ticket costs the training of its round and of all before it."""
    rounds, round_ = range(preset.imp.rounds + 1), _copy_epochs(preset)

    def imp(epochs: int) -> Cost:
        one = [epochs + r * (epochs - preset.imp.rewind) for r in rounds]
        return Cost(one, one[-1])

    tickets = imp(preset.train.epochs)
    found = {label: tickets._replace(one=[tickets.all] * len(rounds)) for label in POOLS} | {TICKETS: tickets}
    if _has_swa(preset):
        found[SWA] = tickets
    found[LONGER] = imp(TIMES * preset.train.epochs)
    copies = (TIMES - 1) * round_
    for label in COPIES:
        found[label] = Cost(
            [own + copies for own in tickets.one],
            tickets.all + len(rounds) * copies,
            TIMES if label == ENSEMBLE else 1,
        )
    return found


# --- what is measured -------------------------------------------------------------------------------------------------


def _measure(
    subject: Subject, target: int, pool: pools.Options = None, copies: int | None = None, swa: bool = False
) -> Found:
    return pools.measure(subject, target, pool) if copies is None else _copies(subject, target, copies, swa)


def _copies(subject: Subject, target: int, copies: int, swa: bool) -> Found:
    """Trains a ticket's round again, several times, and measures what can be made of it."""
    run, ticket = subject.run, subject.tickets[target]
    rewind = run.preset.imp.rewind
    members = [ticket.flat] + [
        retrained(subject, target, seed=stream(run.seed, "copy", i), start=rewind)[-1] for i in range(copies)
    ]
    samples = Validation(run.samples("validation"), subject.batch_size, subject.evaluator.device)
    validated = [subject.predict(member, samples).accuracy for member in members]
    tested = [subject.predict(member) for member in members]
    best = max(range(len(members)), key=lambda i: validated[i])  # of equals the first, which is the ticket if it is one
    logits = torch.stack([each.logits for each in tested]).mean(0)
    accuracy = {
        BEST: tested[best].accuracy,
        MEAN: subject.calibrated(mean(members))[0].accuracy,
        ENSEMBLE: Prediction(logits, tested[0].labels).accuracy,
    }
    if swa:
        ends = retrained(subject, target, seed=run.seed, start=rewind if target else 0)
        accuracy[SWA] = subject.calibrated(mean(ends))[0].accuracy
    return {
        "density": ticket.density,
        "accuracy": accuracy,
        "best": best,
        "accuracies": [each.accuracy for each in tested],
        "validation_accuracies": validated,
    }


def mean(networks: Sequence[Flat]) -> Flat:
    """The average of networks; integer entries are the last one's."""

    def average(vectors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(vectors)).double().mean(0).to(vectors[0].dtype)

    return Flat(
        average([each.weights for each in networks]), average([each.rest for each in networks]), networks[-1].integers
    )


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(preset: Preset, measured: Sequence[Measured]) -> Findings:
    own = [m for m in measured if m.part.condition is None]
    longer = [m for m in measured if m.part.condition is not None]
    copied = [m for m in own if "copies" in m.part.settings]
    free: dict[str, list[pools.Cell]] = pools.cells([m for m in own if "pool" in m.part.settings], POOLS)
    if _has_swa(preset):
        free[SWA] = _cells(copied, SWA)
    matched = pools.cells(longer, {LONGER: None}) | {label: _cells(copied, label) for label in COPIES}
    found, spent = free | matched, costs(preset)
    best = {TICKETS: free[TICKETS], POOL: free[POOL]}
    figures = {"gains": pools.gain_plot(free), "matched": pools.gain_plot(best | matched)}
    shown = pools.findings(found, [_table(found, spent), pools.table("Test accuracy", found)], NOTE, figures)
    records = [
        {
            **record,
            "epochs": spent[record["variant"]].one[record["round"]],
            "networks": spent[record["variant"]].networks,
        }
        for record in shown.records
    ]
    return replace(shown, records=records)


def _cells(copied: Sequence[Measured], label: str) -> list[pools.Cell]:
    targets = sorted({m.part.settings["target"] for m in copied})
    by_target = [[m.found for m in copied if m.part.settings["target"] == target] for target in targets]
    return [
        pools.Cell(target, found[0]["density"], spread(each["accuracy"][label] for each in found))
        for target, found in zip(targets, by_target, strict=True)
    ]


def _table(found: pools.Cells, spent: Mapping[str, Cost]) -> Table:
    """What each variant gains, and what it costs."""
    heads = [
        "",
        "test accuracy",
        *pools.GAIN_HEADS,
        "epochs, one network",
        "epochs, all densities",
        "networks at inference",
    ]
    lines: list[list[Any]] = []
    for label, row in found.items():
        cost, accuracy = spent[label], pools.mean([cell.accuracy for cell in row])
        gain = ["–"] * len(pools.GAIN_HEADS) if label == TICKETS else pools.gain_columns(row, found[TICKETS])
        first, last = cost.one[0], cost.one[-1]
        one = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        lines.append([label, str(accuracy), *gain, one, f"{cost.all:,}", str(cost.networks)])
    return Table("What it gains, and what it costs; mean over all densities", heads, lines)
