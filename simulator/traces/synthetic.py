"""Synthetic traces, defined by a few parameters that can be published with a result. Rates are requests per second
over all models."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.random import Generator

from config.fields import Count, Delay, NonNegative, Seconds
from simulator.traces.drawing import Floats, GapKind, Gaps, LengthDistribution, generator, requests_at
from simulator.traces.rate_curves import RateCurve, constant, daily, switched
from simulator.traces.trace import Trace, TraceRequest, merged

Positive = Annotated[float, Meta(gt=0, lt=1e12, description="a number above 0")]
Exponent = Annotated[float, Meta(ge=0, le=10, description="a number from 0 to 10")]
Cv = Annotated[float, Meta(ge=0.1, le=10, description="a number from 0.1 to 10")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
PositiveShare = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
Tokens = Annotated[float, Meta(ge=1, le=1e7, description="a number of tokens of at least 1")]

Switching = Literal["exponential", "lognormal", "regular"]

_ARRIVALS, _SWITCHING, _PAUSING, _PHASE = range(4)
"""Purposes of a model's random numbers, each with its own generator, so that changing one leaves the others alone."""


class Synthetic(Struct, frozen=True, kw_only=True):
    """Parameters common to all kinds of trace."""

    models: Count
    rate: Positive
    duration: Seconds = 3600.0
    arrivals: GapKind = "gamma"
    cv: Cv = 1.0
    """Coefficient of variation of the gaps between a model's requests while its rate is constant; 1 is Poisson."""
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
        """The trace, which is deterministic. All curves are scaled alike, so that given the drawn on and off times
        `rate` is the expected rate."""
        curves = self.rate_curves()
        expected = sum(curve.expected for curve in curves)
        factor = self.rate * self.duration / expected if expected else 0.0
        return merged([self._model(index, curve.times(factor)) for index, curve in enumerate(curves)])

    @abstractmethod
    def rate_curves(self) -> list[RateCurve]:
        """The curve of each model; only their proportions matter."""

    def _model(self, index: int, curve: RateCurve) -> Trace:
        name = f"model-{index:0{len(str(self.models - 1))}}"
        gaps = Gaps.with_cv(self.arrivals, self.cv)
        prompts = LengthDistribution.fit(self.prompt_mean, self.prompt_p99)
        outputs = LengthDistribution.fit(self.output_mean, self.output_p99)

        def arrive() -> Iterator[TraceRequest]:
            rng = generator(self.seed, index, _ARRIVALS)
            return requests_at(name, curve.arrivals(gaps, rng), prompts, outputs, rng)

        return Trace((name,), self.duration, arrive)


class Zipf(Synthetic, frozen=True, kw_only=True):
    """A provider's models: popularity is a power law of the rank, and each model is on at times and silent otherwise.

    The defaults lie within the ranges the Prism paper reports of production (`simulator.traces.statistics`).
    """

    models: Count = 18
    rate: Positive = 6.0
    cv: Cv = 2.0
    exponent: Exponent = 1.0
    """The model of rank r gets requests in proportion to r ** -exponent."""
    on: PositiveShare = 0.3
    """Share of the time during which a model is on; 1 is always."""
    on_time: Seconds = 210.0
    """Mean seconds a model stays on."""
    switching: Switching = "exponential"
    """Distribution of on and off times. Its CV is 1 for exponential, 2 for lognormal, 0.5 for regular."""
    burst: Seconds = 3.0
    """While a model is on: mean seconds of a burst of requests."""
    pause: Delay = 13.0
    """Mean seconds between two bursts; 0 for no pauses."""
    diurnal: Share = 0.0
    """Amplitude of the daily swing of rates, relative to their mean."""
    day: Seconds = 86400.0
    shift: Share = 0.0
    """Share of a day over which the models' peaks are spread; with 0 all peak together."""

    def rate_curves(self) -> list[RateCurve]:
        return [self._rate_curve(index) for index in range(self.models)]

    def _rate_curve(self, index: int) -> RateCurve:
        weight = (index + 1) ** -self.exponent
        phase = self.shift * generator(self.seed, index, _PHASE).random()
        if self.diurnal:
            curve = daily(weight, self.duration, self.diurnal, self.day, phase)
        else:
            curve = constant(weight, self.duration)
        if self.on < 1:
            rng = generator(self.seed, index, _SWITCHING)
            off_time = self.on_time * (1 / self.on - 1)
            curve = switched(curve, self._on_times(self.on_time, off_time, self.switching, rng))
        if self.pause:
            rng = generator(self.seed, index, _PAUSING)
            curve = switched(curve, self._on_times(self.burst, self.pause, "regular", rng))
        return curve

    def _on_times(self, on: float, off: float, switching: Switching, rng: Generator) -> Floats:
        """Alternating starts and ends of the on times, drawn from long before the trace so that it starts amid them."""
        edges, at = [], -10 * (on + off)
        while at < self.duration:
            for mean in (on, off):
                edges.append(at)
                at += mean * _unit_time(switching, rng)
        return np.array(edges)


class Steady(Zipf, frozen=True, kw_only=True):
    """A few unequal models that are always on, so that moving one gains nothing."""

    models: Count = 4
    rate: Positive = 8.0
    cv: Cv = 1.0
    on: PositiveShare = 1.0
    pause: Delay = 0.0


class Rotating(Synthetic, frozen=True, kw_only=True):
    """A few models are hot at a time; every period, others are. The seed determines the order."""

    models: Count = 6
    rate: Positive = 8.0
    hot: Count = 2
    """Number of models that are hot at a time."""
    hot_share: PositiveShare = 0.8
    """Share of requests that go to the hot models; the others divide the rest evenly."""
    period: Seconds = 300.0

    def __post_init__(self) -> None:
        Synthetic.__post_init__(self)
        if self.hot >= self.models:
            raise ValueError(f"hot: expected fewer than the {self.models} models, got {self.hot}")

    def rate_curves(self) -> list[RateCurve]:
        edges = np.append(np.arange(0.0, self.duration, self.period), self.duration)
        turns = generator(self.seed).permutation(self.models)
        rates = np.full((self.models, len(edges) - 1), (1 - self.hot_share) / (self.models - self.hot))
        for number in range(len(edges) - 1):
            rates[np.roll(turns, -number * self.hot)[: self.hot], number] = self.hot_share / self.hot
        return [RateCurve(edges, model_rates) for model_rates in rates]


def _unit_time(switching: Switching, rng: Generator) -> float:
    """A random time of mean 1."""
    if switching == "regular":
        return rng.gamma(4.0, 0.25)
    if switching == "exponential":
        return rng.exponential(1.0)
    return rng.lognormal(-math.log(5) / 2, math.sqrt(math.log(5)))


KINDS: dict[str, type[Synthetic]] = {"zipf": Zipf, "steady": Steady, "rotating": Rotating}
