"""Chooses the runs to show where there is room for only one per policy."""

from __future__ import annotations

import math
from collections.abc import Iterable

from simulator.report import Setting


def typical(settings: Iterable[Setting]) -> list[Setting]:
    """One setting per policy: the fewest GPUs, then rate and SLO scales closest to 1; of two such rates, the higher."""
    chosen: dict[str, Setting] = {}
    for setting in sorted(settings, key=_distance):
        chosen.setdefault(setting.policy, setting)
    return list(chosen.values())


def _distance(setting: Setting) -> tuple[int, float, float, float]:
    rate, slo = abs(math.log(setting.rate_scale)), abs(math.log(setting.slo_scale))
    return setting.gpus, rate, slo, -setting.rate_scale
