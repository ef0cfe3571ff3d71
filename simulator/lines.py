"""Times of steps that follow each other, each longer than the one before by the same amount."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of the first step, and by how much each is longer than the one before; it holds for so many steps."""

    first: float
    growth: float = 0.0
    steps: float = math.inf

    def plus(self, seconds: float) -> Line:
        return Line(self.first + seconds, self.growth, self.steps)

    def times(self, factor: float) -> Line:
        return Line(self.first * factor, self.growth * factor, self.steps)


def longer(one: Line, other: Line) -> Line:
    """Whichever takes longer, up to the step from which on that is the other one."""
    if (other.first, other.growth) > (one.first, one.growth):
        one, other = other, one
    steps = min(one.steps, other.steps)
    if other.growth > one.growth:
        steps = min(steps, max(1, math.ceil((one.first - other.first) / (other.growth - one.growth))))
    return Line(one.first, one.growth, steps)
