"""Durations of consecutive decode steps, which grow linearly as contexts grow."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Durations of consecutive steps, in seconds."""

    first: float
    """Duration of the first step."""
    growth: float = 0.0
    """How much longer each step is than the one before."""
    steps: float = math.inf
    """Number of steps for which this holds."""

    def plus(self, seconds: float) -> StepTimes:
        return StepTimes(self.first + seconds, self.growth, self.steps)

    def times(self, factor: float) -> StepTimes:
        return StepTimes(self.first * factor, self.growth * factor, self.steps)


def longer(one: StepTimes, other: StepTimes) -> StepTimes:
    """The maximum of the two, valid up to the step at which the other one takes over."""
    if (other.first, other.growth) > (one.first, one.growth):
        one, other = other, one
    steps = min(one.steps, other.steps)
    if other.growth > one.growth:
        steps = min(steps, max(1, math.ceil((one.first - other.first) / (other.growth - one.growth))))
    return StepTimes(one.first, one.growth, steps)
