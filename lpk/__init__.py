"""Lottery Pools Kernels: the tickets of iterative magnitude pruning, pooled into stronger ones of the same sparsity.

The face of the package: its names come from the folders below, each imported when it is first used.

    ops        the kernels, as functions of flat vectors
    networks   what a network is: flat vectors, prunable weights, its graph
    tickets    what remains of a round of pruning, in memory and on disk
    pruning    Algorithm 1: train, prune, rewind
    pooling    Algorithms 2 and 3: interpolate, evaluate, keep what is better
    sparse     the inference engine for what is pruned
    events     what the hooks of lpk.imp, lpk.Trainer and lpk.pool are called with
    data, models, presets, reporting, run, experiments, cli   what the `lpk` command is made of
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lpk.version import OWN as __version__

if TYPE_CHECKING:
    from lpk import data as data
    from lpk import experiments as experiments
    from lpk import export, ops
    from lpk import models as models
    from lpk import presets as presets
    from lpk import sparse as sparse
    from lpk.events import EpochEvent, RoundEvent, StepEvent
    from lpk.pooling.accuracy import Evaluation, Gain, evaluate
    from lpk.pooling.methods import COEFFICIENTS
    from lpk.pooling.pool import pool
    from lpk.pruning.imp import imp
    from lpk.pruning.recipe import Recipe
    from lpk.pruning.train import Trainer
    from lpk.reporting.results import Results, report
    from lpk.sparse import sparsify
    from lpk.tickets.files import FileDamaged
    from lpk.tickets.pooled import Pooled, Step
    from lpk.tickets.tickets import Ticket, Tickets

_MODULES = {
    "COEFFICIENTS": "lpk.pooling.methods",
    "EpochEvent": "lpk.events",
    "Evaluation": "lpk.pooling.accuracy",
    "FileDamaged": "lpk.tickets.files",
    "Gain": "lpk.pooling.accuracy",
    "Pooled": "lpk.tickets.pooled",
    "Recipe": "lpk.pruning.recipe",
    "Results": "lpk.reporting.results",
    "RoundEvent": "lpk.events",
    "Step": "lpk.tickets.pooled",
    "StepEvent": "lpk.events",
    "Ticket": "lpk.tickets.ticket",
    "Tickets": "lpk.tickets.tickets",
    "Trainer": "lpk.pruning.train",
    "evaluate": "lpk.pooling.accuracy",
    "imp": "lpk.pruning.imp",
    "pool": "lpk.pooling.pool",
    "report": "lpk.reporting.results",
    "sparsify": "lpk.sparse",
}
_FOLDERS = ("data", "experiments", "export", "models", "ops", "presets", "sparse")

__all__ = [
    "COEFFICIENTS",
    "EpochEvent",
    "Evaluation",
    "FileDamaged",
    "Gain",
    "Pooled",
    "Recipe",
    "Results",
    "RoundEvent",
    "Step",
    "StepEvent",
    "Ticket",
    "Tickets",
    "Trainer",
    "__version__",
    "evaluate",
    "export",
    "imp",
    "ops",
    "pool",
    "report",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    elif name in _FOLDERS:
        value = import_module(f"lpk.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FOLDERS})
