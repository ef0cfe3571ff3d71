"""Traces drawn from parameters alone, to be published with a result. Rates are requests a second over all models."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.random import Generator

from config.fields import Count, Delay, NonNegative, Seconds
from simulator.traces.demand import Demand, constant, daily, switched
from simulator.traces.drawing import Floats, GapKind, Gaps, Lengths, generator, requests_at
from simulator.traces.trace import Request, Trace, merged

Positive = Annotated[float, Meta(gt=0, lt=1e12, description="a number above 0")]
Exponent = Annotated[float, Meta(ge=0, le=10, description="a number from 0 to 10")]
Cv = Annotated[float, Meta(ge=0.1, le=10, description="a number from 0.1 to 10")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
PositiveShare = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
Tokens = Annotated[float, Meta(ge=1, le=1e7, description="a number of tokens of at least 1")]

Switching = Literal["exponential", "lognormal", "regular"]

_ARRIVALS, _SWITCHING, _PAUSING, _PHASE = range(4)
"""What a model's random numbers are for, so that a change of one leaves the others as they are."""


class Synthetic(Struct, frozen=True, kw_only=True):
    """What all kinds have in common."""

    models: Count
    rate: Positive
    duration: Seconds = 3600.0
    arrivals: GapKind = "gamma"
    cv: Cv = 1.0
    """Of the gaps between a model's requests, where its rate is constant; 1 is Poisson."""
    prompt_mean: Tokens = 600.0
    prompt_p99: Tokens = 4000.0
    output_mean: Tokens = 200.0
    output_p99: Tokens = 1200.0
    seed: NonNegative = 0

    def __post_init__(self) -> None:
        for name, mean, p99 in (
            ("prompt_p99", self.prompt_mean, self.prompt_p99),
            ("output_p99", self.output_mean, self.output_p99),
        ):
            if p99 < mean:
                raise ValueError(f"{name}: expected at least the mean, {mean:g}, got {p99:g}")

    def trace(self) -> Trace:
        """Deterministic. All demands are scaled alike, so that `rate` is expected of these very on and off times."""
        demands = self.demands()
        expected = sum(demand.expected for demand in demands)
        factor = self.rate * self.duration / expected if expected else 0.0
        return merged([self._model(index, demand.times(factor)) for index, demand in enumerate(demands)])

    @abstractmethod
    def demands(self) -> list[Demand]:
        """Of each model; only their proportions count."""

    def _model(self, index: int, demand: Demand) -> Trace:
        name = f"model-{index:0{len(str(self.models - 1))}}"
        gaps = Gaps.with_cv(self.arrivals, self.cv)
        prompts = Lengths.fit(self.prompt_mean, self.prompt_p99)
        outputs = Lengths.fit(self.output_mean, self.output_p99)

        def arrive() -> Iterator[Request]:
            rng = generator(self.seed, index, _ARRIVALS)
            return requests_at(name, demand.arrivals(gaps, rng), prompts, outputs, rng)

        return Trace((name,), self.duration, arrive)


class Zipf(Synthetic, frozen=True, kw_only=True):
    """A provider's models: the popularity a power law of the rank, each model on at times and else silent.

    The defaults come to lie within what Prism saw in production (`simulator.traces.statistics`).
    """

    models: Count = 18
    rate: Positive = 6.0
    cv: Cv = 2.0
    exponent: Exponent = 1.0
    """The model of rank r is asked for in proportion to r ** -exponent."""
    on: PositiveShare = 0.3
    """Share of the time for which a model is on; 1 is always."""
    on_time: Seconds = 210.0
    """Seconds for which it is, in the mean."""
    switching: Switching = "exponential"
    """How on and off times are distributed: with a CV of 1, of 2 if lognormal, of 0.5 if regular."""
    burst: Seconds = 3.0
    """Seconds for which a model that is on is asked at a stretch, in the mean,"""
    pause: Delay = 13.0
    """and between two of these; 0 is without pauses."""
    diurnal: Share = 0.0
    """How far rates swing around their mean over a day."""
    day: Seconds = 86400.0
    shift: Share = 0.0
    """Over which share of a day the models' peaks are spread; 0 lets them all have the same."""

    def demands(self) -> list[Demand]:
        return [self._demand(index) for index in range(self.models)]

    def _demand(self, index: int) -> Demand:
        weight = (index + 1) ** -self.exponent
        phase = self.shift * generator(self.seed, index, _PHASE).random()
        if self.diurnal:
            demand = daily(weight, self.duration, self.diurnal, self.day, phase)
        else:
            demand = constant(weight, self.duration)
        if self.on < 1:
            rng = generator(self.seed, index, _SWITCHING)
            demand = switched(demand, self._turns(self.on_time, self.on_time * (1 / self.on - 1), self.switching, rng))
        if self.pause:
            rng = generator(self.seed, index, _PAUSING)
            demand = switched(demand, self._turns(self.burst, self.pause, "regular", rng))
        return demand

    def _turns(self, on: float, off: float, switching: Switching, rng: Generator) -> Floats:
        """Starts and ends in turn. They begin long before the trace, which so begins in the midst of them."""
        edges, at = [], -10 * (on + off)
        while at < self.duration:
            for mean in (on, off):
                edges.append(at)
                at += mean * _unit_time(switching, rng)
        return np.array(edges)


class Steady(Zipf, frozen=True, kw_only=True):
    """A few unequal models, all of them always on: nothing to gain by moving one."""

    models: Count = 4
    rate: Positive = 8.0
    cv: Cv = 1.0
    on: PositiveShare = 1.0
    pause: Delay = 0.0


class Rotating(Synthetic, frozen=True, kw_only=True):
    """A few models are hot at a time, and every period others are. The seed says in which order they take turns."""

    models: Count = 6
    rate: Positive = 8.0
    hot: Count = 2
    """Models that are hot at a time."""
    hot_share: PositiveShare = 0.8
    """Their share of the requests; the others divide the rest evenly."""
    period: Seconds = 300.0

    def __post_init__(self) -> None:
        Synthetic.__post_init__(self)
        if self.hot >= self.models:
            raise ValueError(f"hot: expected fewer than the {self.models} models, got {self.hot}")

    def demands(self) -> list[Demand]:
        edges = np.append(np.arange(0.0, self.duration, self.period), self.duration)
        turns = generator(self.seed).permutation(self.models)
        rates = np.full((self.models, len(edges) - 1), (1 - self.hot_share) / (self.models - self.hot))
        for number in range(len(edges) - 1):
            rates[np.roll(turns, -number * self.hot)[: self.hot], number] = self.hot_share / self.hot
        return [Demand(edges, model_rates) for model_rates in rates]


def _unit_time(switching: Switching, rng: Generator) -> float:
    """Of mean 1."""
    if switching == "regular":
        return rng.gamma(4.0, 0.25)
    if switching == "exponential":
        return rng.exponential(1.0)
    return rng.lognormal(-math.log(5) / 2, math.sqrt(math.log(5)))


KINDS: dict[str, type[Synthetic]] = {"zipf": Zipf, "steady": Steady, "rotating": Rotating}
