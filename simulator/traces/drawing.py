"""Draws gaps, token lengths and requests of one model, many at a time.

All randomness comes from PCG64, seeded by its purpose, so that a seed yields the same trace on every machine. NumPy
guarantees this generator's bit stream; it changes how distributions use it rarely, and only in feature releases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from simulator.traces.trace import TraceRequest

Floats = NDArray[np.float64]
GapKind = Literal["gamma", "weibull"]

_P99 = NormalDist().inv_cdf(0.99)


def generator(*seed: int) -> Generator:
    """A random generator for a tuple of non-negative integers; different tuples get independent generators."""
    return Generator(PCG64((len(seed), *seed)))  # the length, because NumPy treats (1,) and (1, 0) alike


@dataclass(frozen=True, slots=True)
class Gaps:
    """A distribution of the times between arrivals, in the unit of `scale`."""

    kind: GapKind
    shape: float
    scale: float

    @classmethod
    def with_cv(cls, kind: GapKind, cv: float) -> Gaps:
        """Gaps of mean 1 with the coefficient of variation `cv` above 0; 1 makes arrivals a Poisson process."""
        if kind == "gamma":
            return cls(kind, cv**-2, cv**2)
        shape = _weibull_shape(cv)
        return cls(kind, shape, 1 / math.gamma(1 + 1 / shape))

    def draw(self, rng: Generator, number: int) -> Floats:
        if self.kind == "gamma":
            return rng.gamma(self.shape, self.scale, number)
        return self.scale * rng.weibull(self.shape, number)


def _weibull_shape(cv: float) -> float:
    """Solved by bisection, as the CV falls with growing shape."""
    low, high = 0.05, 200.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        spread = math.exp(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle)) - 1
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """A lognormal distribution of the tokens of a prompt or an answer, at least 1."""

    mu: float
    sigma: float

    @classmethod
    def fit(cls, mean: float, p99: float, p50: float | None = None) -> LengthDistribution:
        """Fit exactly to the mean, which determines the load, and as closely as possible to the logarithms of the
        percentiles."""
        sigmas = np.linspace(0, _P99, 1000)
        mus = np.log(mean) - sigmas**2 / 2
        errors = (mus + _P99 * sigmas - np.log(p99)) ** 2
        if p50 is not None:
            errors += (mus - np.log(p50)) ** 2
        best = int(np.argmin(errors))
        return cls(float(mus[best]), float(sigmas[best]))

    def draw(self, rng: Generator, number: int) -> list[int]:
        drawn: list[int] = np.maximum(1, np.rint(rng.lognormal(self.mu, self.sigma, number))).astype(int).tolist()
        return drawn


def requests_at(
    model: str, times: Iterable[Floats], prompts: LengthDistribution, outputs: LengthDistribution, rng: Generator
) -> Iterator[TraceRequest]:
    """Yields a request at each of the times, given in seconds, in batches."""
    for piece in times:
        drawn = zip(piece.tolist(), prompts.draw(rng, len(piece)), outputs.draw(rng, len(piece)), strict=True)
        for at, prompt_tokens, output_tokens in drawn:
            yield TraceRequest(at, model, prompt_tokens, output_tokens)
