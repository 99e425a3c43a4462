"""The paper's figures and tables, and what goes beyond them, one experiment a module, each carried out on a study's
tickets.

An experiment is a function (preset, seeds) -> Plan: what has to be measured, and how that is shown.

averages, interpolation, comparison, candidates, coefficients, prune, ensemble, disagreement, dense, robustness
           one experiment of the paper each; EXPERIMENTS lists them
conditions when pooling pays, and compute, what the same training buys otherwise: not in the paper
pools      what those have in common that make pools
sharing    a study in several processes, which train and measure in turn
study      tickets of several seeds, shared by all experiments of a preset, and their measurements, kept part by part
subject    one seed's run: what a measurement asks for
retraining a ticket's round once more
findings   what came of an experiment: its table, results.json, CSV and page
forecast   what is still missing, and how long it takes
demo       `lpk demo`, `lpk pool` and `lpk eval`: one run, compared with its pools

`study` carries out a plan on each seed's `subject`, and writes `findings`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lpk import choices
from lpk.experiments import (
    averages,
    candidates,
    coefficients,
    comparison,
    compute,
    conditions,
    dense,
    disagreement,
    ensemble,
    interpolation,
    prune,
    robustness,
    sharing,
)
from lpk.experiments.findings import Findings, write, write_report
from lpk.experiments.study import Plan, Study
from lpk.presets import Preset

__all__ = ["EXPERIMENTS", "Experiment", "Study", "carry_out", "chosen", "share_out"]


class Experiment(NamedTuple):
    plan: Callable[[Preset, Sequence[int]], Plan]
    shows: str  # in the paper
    description: str
    papers: bool = True  # one of the paper's own, which "all" stands for


EXPERIMENTS = {
    "averages": Experiment(
        averages.plan,
        "Figure 1, appendix Figure 2",
        "Plain averages of two tickets, each pair, with and without rewinding.",
    ),
    "interpolation": Experiment(
        interpolation.plan,
        "Figure 2",
        "Test loss and error on the line between adjacent tickets, with and without rewinding.",
    ),
    "comparison": Experiment(
        comparison.plan,
        "Figures 3a and 3b, Tables 6 to 8, appendix Figure 1",
        "Tickets, pools, SWA and EMA at every density.",
    ),
    "candidates": Experiment(candidates.plan, "Figure 4", "Pools with 4, 9 and all candidates."),
    "coefficients": Experiment(coefficients.plan, "Figure 5", "Pools with 1, 3, 7 and 11 coefficients."),
    "prune": Experiment(prune.plan, "Figure 6", "Pruning at every step of a pool, or once after it."),
    "ensemble": Experiment(
        ensemble.plan,
        "Figure 7",
        "The pool of a ticket and its two nearest against the ensemble of their outputs, and what each costs.",
    ),
    "disagreement": Experiment(
        disagreement.plan, "Figure 8", "On how many test samples two tickets predict different classes."
    ),
    "dense": Experiment(
        dense.plan,
        "Towards stronger dense networks",
        "The dense network made stronger with the tickets pruned from it.",
    ),
    "robustness": Experiment(
        robustness.plan, "Figure 3c", "Tickets and pools on corrupted test samples, by corruption and severity."
    ),
    "conditions": Experiment(
        conditions.plan,
        "not in the paper",
        "When pooling pays: gains against wrong labels, epochs a round and training samples, with tickets for each.",
        papers=False,
    ),
    "compute": Experiment(
        compute.plan,
        "not in the paper",
        f"What {compute.TIMES} times the training buys: pools, which need none, against more epochs, and against the "
        "best, the average and the ensemble of copies of each ticket.",
        papers=False,
    ),
}


def chosen(name: str) -> list[str]:
    """The experiments that a name stands for: itself, or every one of the paper for "all"."""
    if name != "all" and name not in EXPERIMENTS:
        close = choices.suggestion(name, ["all", *EXPERIMENTS])
        raise ValueError(f"experiment is {name!r}; it must be all or one of {', '.join(EXPERIMENTS)}{close}")
    return [each for each, experiment in EXPERIMENTS.items() if experiment.papers] if name == "all" else [name]


def share_out(names: Sequence[str], study: Study) -> None:
    """Computes what is missing of several experiments in the processes of torchrun; one alone does nothing here."""
    sharing.share_out(study, {name: EXPERIMENTS[name].plan(study.preset, study.seeds) for name in names})


def carry_out(name: str, study: Study) -> Findings:
    """Computes what is missing of an experiment, and writes its results and the study's report.

    Raises ValueError where the directory holds tickets of another preset, DataNotFound where the data are not here.
    """
    began = time.perf_counter()
    experiment = EXPERIMENTS[name]
    plan = experiment.plan(study.preset, study.seeds)
    findings = plan.show(study.measure(name, plan))
    about = {
        "shows": experiment.shows,
        "description": experiment.description,
        "title": f"{study.preset.data.name}, {study.preset.model.name}",
        "preset": study.preset.to_dict(),
        "seeds": list(study.seeds),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write(study.out, name, findings, about)
    write_report(study.out, EXPERIMENTS)
    return findings
