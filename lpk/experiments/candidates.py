"""How many tickets are offered to a target: the nearest 4, the nearest 9, all (Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

from lpk.experiments import pools
from lpk.experiments.study import Plan
from lpk.presets import Preset

COUNTS = (4, 9)


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    everything = preset.imp.rounds
    fewer = {f"{n} candidates": {**pools.INTERPOLATION, "candidates": n} for n in COUNTS if n < everything}
    variants = {"ticket": None, f"all {everything} candidates": pools.INTERPOLATION, **fewer}
    return pools.plan(preset, seeds, variants)
