"""How much one model is asked for over time, and the arrivals that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from simulator.traces.drawing import Floats, Gaps

AT_ONCE = 1024
BURN_IN = 100.0
"""Mean gaps before the start: bursty arrivals that began at time 0 would be too many there."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests a second, constant between two edges (seconds; the first is 0, the last is the end)."""

    edges: Floats
    rates: Floats

    @property
    def expected(self) -> float:
        """Requests over the whole time."""
        return float(np.dot(np.diff(self.edges), self.rates))

    def times(self, factor: float) -> Demand:
        return Demand(self.edges, self.rates * factor)

    def arrivals(self, gaps: Gaps, rng: Generator) -> Iterator[Floats]:
        """Seconds, in pieces. Gaps (of mean 1) are measured in expected requests: low rates stretch them."""
        expected = np.concatenate(([0.0], np.cumsum(np.diff(self.edges) * self.rates)))
        reached = -BURN_IN
        while reached < expected[-1]:
            points = reached + np.cumsum(gaps.draw(rng, AT_ONCE))
            reached = float(points[-1])
            inside = points[(points >= 0) & (points < expected[-1])]
            yield np.interp(inside, expected, self.edges)


def constant(rate: float, duration: float) -> Demand:
    return Demand(np.array([0.0, duration]), np.array([rate]))


def switched(demand: Demand, on: Floats) -> Demand:
    """The same where it is on, nothing elsewhere. `on` holds starts and ends in turn (seconds)."""
    edges = np.union1d(demand.edges, on[(on > 0) & (on < demand.edges[-1])])
    middles = (edges[:-1] + edges[1:]) / 2
    rates = demand.rates[np.searchsorted(demand.edges, middles) - 1]
    return Demand(edges, np.where(np.searchsorted(on, middles) % 2, rates, 0.0))


def daily(rate: float, duration: float, amplitude: float, day: float, phase: float) -> Demand:
    """A sine around `rate`, in steps of a minute. `day` is its period in seconds, `phase` a share of it."""
    edges = np.append(np.arange(0.0, duration, 60.0), duration)
    middles = (edges[:-1] + edges[1:]) / 2
    return Demand(edges, rate * (1 + amplitude * np.sin(2 * np.pi * (middles / day + phase))))
