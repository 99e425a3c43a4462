"""Lottery Pools Kernels: the tickets of iterative magnitude pruning, pooled into stronger ones of the same sparsity."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

try:
    __version__ = _version("lpk")
except PackageNotFoundError:  # built in place, not installed
    __version__ = "0.1.0+inplace"

from lpk import export, ops
from lpk.imp import imp
from lpk.pooled import Pooled, Step
from lpk.search import COEFFICIENTS, pool
from lpk.sparse import sparsify
from lpk.tickets import Ticket, Tickets
from lpk.train import Recipe, Trainer

__all__ = [
    "COEFFICIENTS",
    "Pooled",
    "Recipe",
    "Step",
    "Ticket",
    "Tickets",
    "Trainer",
    "__version__",
    "export",
    "imp",
    "ops",
    "pool",
    "sparsify",
]
