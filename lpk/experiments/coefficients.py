"""How many coefficients are tried for a candidate: 1, 3, 7 or 11 (Figure 5; the appendix' Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence

from lpk.experiments import pools
from lpk.experiments.study import Plan
from lpk.pooling.methods import COEFFICIENTS
from lpk.presets import Preset

SEVEN = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
THREE = [0.05, 0.5, 0.95]


def plan(preset: Preset, seeds: Sequence[int]) -> Plan:
    variants: dict[str, pools.Options] = {
        "ticket": None,
        f"{len(COEFFICIENTS)} coefficients": pools.INTERPOLATION,
        "7 coefficients": {**pools.INTERPOLATION, "coefficients": SEVEN},
        "3 coefficients": {**pools.INTERPOLATION, "coefficients": THREE},
        "1 coefficient": pools.AVERAGE,  # 0.5
    }
    return pools.plan(preset, seeds, variants)
