"""What a plan takes, on the engine and in PyTorch, by the model of costs: no stopwatch decides."""

from __future__ import annotations

from typing import NamedTuple

from lpk.sparse.blocks import IMAGES, Blocks
from lpk.sparse.costs import engine_seconds, network_seconds
from lpk.sparse.packing import DepthwiseFilters, best_way
from lpk.sparse.runs import Run
from lpk.sparse.steps import AnyStep, Attention, Convolve, Foreign, LayerNorm, Pack, Pool, Relayout, Unpack, values_of

MARGIN = 1.1  # so many times as fast the engine must seem: the model is off by as much


class Estimate(NamedTuple):
    """Seconds of one thread; what counts is which is more."""

    engine: float
    pytorch: float

    @property
    def engine_pays(self) -> bool:
        return self.engine * MARGIN <= self.pytorch


def estimate(run: Run) -> Estimate:
    """For as many samples as a run has."""
    assert run.plan.graph is not None
    ending = 0.0 if run.plan.ending is None else network_seconds(run.plan.ending, run.batch)
    engine = sum(_seconds(run, step) for step in run.plan.steps)
    return Estimate(engine + ending, network_seconds(run.plan.graph, run.batch))


def _seconds(run: Run, step: AnyStep) -> float:
    if isinstance(step, Foreign):
        return network_seconds(step.part, run.batch)
    moved = sum(_bytes(run.buffers[value]) for value in values_of(step))
    if isinstance(step, Pack | Unpack):
        return engine_seconds("pack" if isinstance(step, Pack) else "unpack", products=0, bytes=moved)
    if isinstance(step, Relayout):
        return engine_seconds("relayout", products=0, bytes=moved)
    if isinstance(step, Convolve):
        convolution, out = run.filters.convolutions[step], run.buffers[step.out]
        nonzeros = run.filters.weights.nonzeros(step.layer.weight)
        way, share = best_way(convolution, out, nonzeros)
        pixels = _bytes(out) / (4 * convolution.filters)
        products = share * step.layer.weight.numel() * pixels
        around = engine_seconds("elementwise", products=0, bytes=moved) if way is DepthwiseFilters else 0.0
        return around + engine_seconds("convolution", products=products, bytes=moved)
    if isinstance(step, Attention):
        return engine_seconds("attention", products=step.products * run.batch, bytes=moved)
    kind = "pool" if isinstance(step, Pool) else "normalisation" if isinstance(step, LayerNorm) else "elementwise"
    return engine_seconds(kind, products=0, bytes=moved)


def _bytes(blocks: Blocks) -> int:
    """Without borders; of all lanes."""
    return 4 * IMAGES * blocks.blocks * blocks.data.shape[1] * blocks.patch[0] * blocks.patch[1]
