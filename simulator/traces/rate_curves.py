"""The request rate of one model over time, and arrivals drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from simulator.traces.drawing import Floats, Gaps

AT_ONCE = 1024
"""Gaps drawn at a time."""
BURN_IN = 100.0
"""Mean gaps to draw before the start, since bursty arrivals that begin at time 0 would cluster there."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Requests per second, constant between two edges (in seconds; the first is 0, the last is the end)."""

    edges: Floats
    rates: Floats

    @property
    def expected(self) -> float:
        """Expected number of requests over the whole time."""
        return float(np.dot(np.diff(self.edges), self.rates))

    def times(self, factor: float) -> RateCurve:
        return RateCurve(self.edges, self.rates * factor)

    def arrivals(self, gaps: Gaps, rng: Generator) -> Iterator[Floats]:
        """Yields arrival times in seconds, in batches. `gaps` have mean 1 and are in units of expected requests, so
        that low rates stretch them."""
        expected = np.concatenate(([0.0], np.cumsum(np.diff(self.edges) * self.rates)))
        reached = -BURN_IN
        while reached < expected[-1]:
            points = reached + np.cumsum(gaps.draw(rng, AT_ONCE))
            reached = float(points[-1])
            inside = points[(points >= 0) & (points < expected[-1])]
            yield np.interp(inside, expected, self.edges)


def constant(rate: float, duration: float) -> RateCurve:
    return RateCurve(np.array([0.0, duration]), np.array([rate]))


def switched(demand: RateCurve, on: Floats) -> RateCurve:
    """The curve set to 0 outside the on times. `on` holds their starts and ends alternately, in seconds."""
    edges = np.union1d(demand.edges, on[(on > 0) & (on < demand.edges[-1])])
    middles = (edges[:-1] + edges[1:]) / 2
    rates = demand.rates[np.searchsorted(demand.edges, middles) - 1]
    return RateCurve(edges, np.where(np.searchsorted(on, middles) % 2, rates, 0.0))


def daily(rate: float, duration: float, amplitude: float, day: float, phase: float) -> RateCurve:
    """A sine around `rate`, in steps of a minute, with a period of `day` seconds, shifted by `phase` periods."""
    edges = np.append(np.arange(0.0, duration, 60.0), duration)
    middles = (edges[:-1] + edges[1:]) / 2
    return RateCurve(edges, rate * (1 + amplitude * np.sin(2 * np.pi * (middles / day + phase))))
