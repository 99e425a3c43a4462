"""When to prune: at every step of the search, or once after it (Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence

from lpk.experiments import pools
from lpk.experiments.study import Plan
from lpk.presets import Preset


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    variants: dict[str, pools.Options] = {
        "ticket": None,
        "prune during": pools.INTERPOLATION,
        "prune after": {**pools.INTERPOLATION, "prune": "after"},
    }
    return pools.plan(preset, seeds, variants)
