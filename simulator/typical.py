"""The runs of a series that stand for it where only one of each policy can be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from simulator.report import Setting


def typical(settings: Iterable[Setting]) -> list[Setting]:
    """One of each policy: the fewest GPUs, and the rate and SLO scales nearest to 1, the higher rate of two equals."""
    chosen: dict[str, Setting] = {}
    for setting in sorted(settings, key=_distance):
        chosen.setdefault(setting.policy, setting)
    return list(chosen.values())


def _distance(setting: Setting) -> tuple[int, float, float, float]:
    rate, slo = abs(math.log(setting.rate_scale)), abs(math.log(setting.slo_scale))
    return setting.gpus, rate, slo, -setting.rate_scale
