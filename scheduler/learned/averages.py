"""What is learned from one observation after another, in constant space. Times are arguments, as everywhere here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BUCKETS = 12
"""Of a window: a sum over it is late by at most a twelfth of its length."""


@dataclass(slots=True)
class Rate:
    """How much a second, over the last `length` seconds."""

    length: float
    _sums: list[float] = field(default_factory=lambda: [0.0] * BUCKETS)
    _newest: int = 0
    """The bucket of time in which something was last added."""
    _total: float = 0.0
    _began: float | None = None

    def add(self, amount: float, now: float) -> None:
        if self._began is None:
            self._began = now
        self._forget(now)
        self._sums[self._newest % BUCKETS] += amount
        self._total += amount

    def per_second(self, now: float) -> float:
        """Of a window that has not passed yet, what it would be if it went on like this; at least a second of it."""
        if self._began is None:
            return 0.0
        self._forget(now)
        return max(0.0, self._total) / min(self.length, max(1.0, now - self._began))

    def _forget(self, now: float) -> None:
        newest = int(now * BUCKETS / self.length)
        passed = newest - self._newest
        if passed <= 0:
            return
        self._newest = newest
        if passed >= BUCKETS:
            self._sums = [0.0] * BUCKETS
            self._total = 0.0
            return
        for bucket in range(newest - passed + 1, newest + 1):
            self._total -= self._sums[bucket % BUCKETS]
            self._sums[bucket % BUCKETS] = 0.0


@dataclass(slots=True)
class Level:
    """The average of a level that changes at times; what was `half` seconds ago counts half."""

    half: float
    level: float = 0.0
    """Since the last change."""
    _average: float = 0.0
    _area: float = 0.0
    _at: float = 0.0

    def set(self, level: float, now: float) -> None:
        """The level changes."""
        self._average, self._area = self.at(now), self.area(now)
        self._at = now
        self.level = level

    def at(self, now: float) -> float:
        """The average at `now`."""
        return self.level + (self._average - self.level) * math.pow(0.5, (now - self._at) / self.half)

    def area(self, now: float) -> float:
        """The integral of the level since the beginning, in seconds."""
        return self._area + self.level * (now - self._at)


@dataclass(slots=True)
class Line:
    """y = a + b x through what was seen, by least squares, neither of them negative; older observations fade."""

    fade: float = 0.98
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def see(self, x: float, y: float) -> None:
        keep = self.fade
        self._n = self._n * keep + 1
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y

    @property
    def known(self) -> bool:
        return self._n > 0

    def at(self, x: float) -> float:
        """The expected y; 0 before the first observation."""
        if not self.known:
            return 0.0
        a, b = self.coefficients()
        return a + b * x

    def coefficients(self) -> tuple[float, float]:
        """a and b, once something was seen."""
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        if spread <= 1e-9 * max(1.0, mean_x * mean_x):
            return (mean_y, 0.0) if mean_x <= 0 else (0.0, mean_y / mean_x)
        slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        if slope * mean_x > mean_y:
            return 0.0, mean_y / mean_x
        return mean_y - slope * mean_x, slope


def smoothed(average: float, value: float, weight: float) -> float:
    """A moving average in which `value` counts `weight`; at 0 it has not begun."""
    return value if average == 0.0 else average + weight * (value - average)
